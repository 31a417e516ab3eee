"""Train the latent diffusion prior: a tokenizer's latents => runs/<name>/pipeline, an ArcVQLDMPipeline.

accelerate launch scripts/train_ldm.py
accelerate launch scripts/train_ldm.py --config configs/mnist/ldm.yaml
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler
from jsonargparse import Namespace
from torch import Tensor

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.compute.precision import full_float32
from arcvq.runs.options import check_run, check_share
from arcvq.runs.results import load_tokenizer
from arcvq.runs.run import Run
from arcvq.training.latent_cache import EncodedData
from arcvq.training.memory_check import check_memory
from arcvq.training.preview import save_preview
from arcvq.training.prior import PriorTraining, add_prior_options, finish, start
from pipelines import ArcVQLDMPipeline
from priors.diffusion import diffusion_loss, make_scheduler
from priors.unet import UNet, make_unet, null_label
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.tiles import blocks

# DDIM steps of the pictures made during training; the final ones take the pipeline's default.
PREVIEW_STEPS = 50

HELP = HelpPage(
    common=(
        *("config", "dry_run", "tokenizer", "ema_decay", "latents.mode", "data.name", "data.num_workers"),
        *("unet.channels", "unet.channel_multipliers", "unet.num_blocks"),
        *("label_dropout", "min_snr_gamma"),
        *("optim.max_steps", "optim.batch_size", "optim.lr"),
        *("run.name", "run.output_dir", "run.seed", "run.mixed_precision"),
    ),
    examples=(
        "arcvq train-ldm",
        "arcvq train-ldm --config mnist/ldm.yaml --tokenizer runs/arc --run.name arc-ldm",
        "accelerate launch -m arcvq train-ldm --config imagenet/ldm.yaml --tokenizer runs/imagenet-arcvq-f8",
    ),
    writes="OUTPUT_DIR/NAME/pipeline; checkpoints, metrics.jsonl and samples next to it",
    following="arcvq sample runs/ldm, or arcvq evaluate generation runs/ldm",
)


def main(args: Sequence[str] | None = None) -> None:
    """Train with the options of a command line; see `train`."""
    parser = make_parser()
    config = parser.parse(args)
    train(config, parser.settings(config))


def train(config: Namespace, settings: dict[str, Any]) -> None:
    """Train, or resume, until `optim.max_steps`, and write the pipeline.

    Args:
        config: the parsed options.
        settings: the same as plain values, to be stored in the run folder.
    """
    # --- data: latents of the tokenizer, and the run that encodes them ---
    check(config)
    tokenizer = load_tokenizer(config.tokenizer)
    with torch.device("meta"):  # sizes that do not fit are an error before encoding
        make_unet(tokenizer.latent_shape, 1, **config.unet.as_dict())
    run, encoded = start(config, settings, tokenizer)

    # --- networks ---
    check_memory(run, partial(make_prior, config, encoded), "unet.channels or unet.num_blocks")
    training = set_up(run, config, encoded)
    averaged, id2label = training.averaged, dict(enumerate(encoded.class_names))
    pipeline = ArcVQLDMPipeline(tokenizer, averaged, training.scheduler, id2label, encoded.latent_scale)
    pipeline.to(run.device)

    # --- steps ---
    for batch in run.steps():
        training.step(batch)
        if run.is_due(run.config.sample_every):
            run.average.load_into(averaged)  # by every process: where the weights are sharded, each has a part
        if run.is_main and run.is_due(run.config.sample_every):
            run.write({"test_loss": held_out_loss(pipeline, encoded.held_out)})
            save_preview(pipeline, run.picture("step"), num_inference_steps=PREVIEW_STEPS)

    # --- result ---
    run.average.load_into(averaged)
    finish(run, pipeline)


def make_parser() -> ScriptParser:
    """Declare the options."""
    parser = ScriptParser("Train a class-conditional latent diffusion prior.", "ldm.yaml", HELP)
    parser.add_function_arguments(make_unet, "unet", skip={"latent_shape", "num_classes"})
    parser.add_function_arguments(make_scheduler, "diffusion")
    parser.add_argument("--label_dropout", type=float, default=0.1, help="share of labels replaced by the null class")
    snr = "weighs the loss by min-SNR with this bound, 5 in its paper; None: all timesteps alike"
    parser.add_argument("--min_snr_gamma", type=float | None, default=None, help=snr)
    add_prior_options(parser, "ldm", ema_decay=0.9999)
    return parser


def check(config: Namespace) -> None:
    """Raise ValueError for options that cannot work, before time is spent."""
    check_run(config)
    check_share("ema_decay", config.ema_decay)
    check_share("label_dropout", config.label_dropout)
    if config.min_snr_gamma is not None and not config.min_snr_gamma > 0:
        raise ValueError(f"min_snr_gamma must be above 0, or None, got {config.min_snr_gamma}")


def make_prior(config: Namespace, encoded: EncodedData) -> UNet:
    """Build the UNet for the latents and classes of the data."""
    return make_unet(encoded.tokenizer.latent_shape, len(encoded.class_names), **config.unet.as_dict())


@dataclass(frozen=True)
class LDMTraining(PriorTraining):
    """A UNet in training, and the noise schedule of its diffusion.

    Attributes:
        scheduler: the noise schedule.
    """

    scheduler: DDIMScheduler


def set_up(run: Run, config: Namespace, encoded: EncodedData) -> LDMTraining:
    """Build the networks and the optimizer, and load the newest checkpoint.

    Raises:
        ValueError: options that cannot work.
    """
    unet = make_prior(config, encoded)
    scheduler = make_scheduler(**config.diffusion.as_dict())
    averaged = copy.deepcopy(unet).requires_grad_(False)
    num_workers, null, scale = config.data.num_workers, null_label(unet), encoded.latent_scale
    model = run.prepare(unet, encoded.train, encoded.fingerprints, num_workers, config.ema_decay)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        latents = batch["latents"] * scale  # (B, D, h, w), unit variance
        options = (config.label_dropout, config.min_snr_gamma, run.noise(len(latents)))
        return diffusion_loss(model, scheduler, latents, batch["labels"], null, *options)

    return LDMTraining(run, encoded, "UNet", unet, averaged, loss, scheduler)


@full_float32()
@torch.no_grad()
def held_out_loss(pipeline: ArcVQLDMPipeline, held_out: dict[str, Tensor]) -> float:
    """Measure the diffusion loss of held-out latents: all timesteps alike, the same noise at every call."""
    latents = held_out["latents"] * pipeline.config.latent_scale
    null, device, losses = null_label(pipeline.unet), pipeline.device, []
    for part in blocks(len(latents), 64):
        some, labels = latents[part].to(device), held_out["labels"][part].to(device)
        noise = ImageNoise(len(some), device, seed=0, first_image=part.start)
        loss = diffusion_loss(pipeline.unet, pipeline.scheduler, some, labels, null, label_dropout=0.0, noise=noise)
        losses.append(loss * len(some))
    return torch.stack(losses).cpu().double().sum().item() / len(latents)  # not every device has float64
