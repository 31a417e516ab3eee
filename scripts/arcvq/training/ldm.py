"""Trains the latent diffusion prior: a tokenizer's latents => runs/<name>/pipeline, an ArcVQLDMPipeline.

accelerate launch scripts/train_ldm.py
accelerate launch scripts/train_ldm.py --config configs/mnist/ldm.yaml
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDIMScheduler
from jsonargparse import Namespace
from torch import Tensor

from arcvq.cli.parser import ScriptParser
from arcvq.planning.dry_run import DryReport, dry_run
from arcvq.planning.dry_training import DryRun, DryTraining
from arcvq.planning.planned_data import PlannedEncodedData
from arcvq.runs.options import check_run, check_share
from arcvq.runs.results import load_tokenizer
from arcvq.runs.run import Run
from arcvq.sampling.options import save_preview
from arcvq.training.latent_cache import EncodedData
from arcvq.training.memory_check import check_memory
from arcvq.training.prior import PriorTraining, add_prior_options, finish, plan_prior, start
from pipelines import ArcVQLDMPipeline
from priors.diffusion import diffusion_loss, make_scheduler
from priors.unet import make_unet, null_label
from tokenizer.data.facts import DatasetInfo

# DDIM steps of the pictures made during training; the final ones take the pipeline's default.
PREVIEW_STEPS = 50


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Train a class-conditional latent diffusion prior.", digits_config="ldm.yaml")
    parser.add_function_arguments(make_unet, "unet", skip={"latent_shape", "num_classes"})
    parser.add_function_arguments(make_scheduler, "diffusion")
    parser.add_argument("--label_dropout", type=float, default=0.1, help="share of labels replaced by the null class")
    snr = "weighs the loss by min-SNR with this bound, 5 in its paper; None: all timesteps alike"
    parser.add_argument("--min_snr_gamma", type=float | None, default=None, help=snr)
    add_prior_options(parser, "ldm", ema_decay=0.9999)
    return parser


def check(config: Namespace) -> None:
    """Raises ValueError for options that cannot work, before time is spent."""
    check_run(config)
    check_share("ema_decay", config.ema_decay)
    check_share("label_dropout", config.label_dropout)
    if config.min_snr_gamma is not None and not config.min_snr_gamma > 0:
        raise ValueError(f"min_snr_gamma must be above 0, or None, got {config.min_snr_gamma}")


@dataclass(frozen=True)
class LDMTraining(PriorTraining):
    """A UNet in training, and the `scheduler` of its noise."""

    scheduler: DDIMScheduler


def set_up(run: Run, config: Namespace, stage_one: EncodedData | PlannedEncodedData) -> LDMTraining:
    """Builds what is trained, and takes up the newest checkpoint. Raises ValueError for options that cannot work."""
    shape, classes = stage_one.tokenizer.latent_shape, len(stage_one.class_names)
    make = partial(make_unet, shape, classes, **config.unet.as_dict())
    check_memory(run, make, "unet.channels or unet.num_blocks")
    unet = make()
    scheduler = make_scheduler(**config.diffusion.as_dict())
    averaged = copy.deepcopy(unet).requires_grad_(False)
    num_workers, null, scale = config.data.num_workers, null_label(unet), stage_one.latent_scale
    model = run.prepare(unet, stage_one.train, stage_one.fingerprints, num_workers, config.ema_decay)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        latents = batch["latents"] * scale  # (B, D, h, w), unit variance
        options = (config.label_dropout, config.min_snr_gamma)
        return diffusion_loss(model, scheduler, latents, batch["labels"], null, *options)

    return LDMTraining(unet, averaged, loss, scheduler)


def plan(config: Namespace) -> tuple[Callable[[DryRun, Namespace], DryTraining], DatasetInfo]:
    """What a dry run needs: how the training is set up, and its images. Raises ValueError as that does."""
    check(config)
    return plan_prior(config, "UNet", set_up)


def main(args: Sequence[str] | None = None) -> DryReport | None:
    """Trains, or resumes, until `optim.max_steps`, and writes the pipeline; or says what that takes."""
    parser = make_parser()
    config = parser.parse(args)
    if config.dry_run is not None:
        return dry_run(parser, config, *plan(config))
    check(config)
    tokenizer = load_tokenizer(config.tokenizer)
    with torch.device("meta"):  # sizes that do not fit are an error before encoding
        make_unet(tokenizer.latent_shape, 1, **config.unet.as_dict())
    run, stage_one = start(parser, config, tokenizer)
    training = set_up(run, config, stage_one)
    averaged, id2label = training.averaged, dict(enumerate(stage_one.class_names))
    pipeline = ArcVQLDMPipeline(tokenizer, averaged, training.scheduler, id2label, stage_one.latent_scale)
    pipeline.to(run.device)

    for batch in map(stage_one.encode, run.steps()):
        loss = training.loss(batch)
        run.update(loss)
        run.log(loss=loss)
        if run.is_due(run.config.sample_every):
            run.average.load_into(averaged)  # by every process: where the weights are sharded, each has a part
        if run.is_main and run.is_due(run.config.sample_every):
            run.write({"test_loss": held_out_loss(pipeline, stage_one.held_out)})
            save_preview(pipeline, run.picture("step"), num_inference_steps=PREVIEW_STEPS)

    run.average.load_into(averaged)
    finish(run, pipeline)
    return None


@torch.no_grad()
def held_out_loss(pipeline: ArcVQLDMPipeline, held_out: dict[str, Tensor]) -> float:
    """The diffusion loss of held-out latents, all timesteps alike, under noise that is the same at every call."""
    latents = held_out["latents"] * pipeline.config.latent_scale
    null, total = null_label(pipeline.unet), 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for some, labels in zip(latents.split(64), held_out["labels"].split(64), strict=True):
            some, labels = some.to(pipeline.device), labels.to(pipeline.device)
            loss = diffusion_loss(pipeline.unet, pipeline.scheduler, some, labels, null, label_dropout=0.0)
            total += loss.item() * len(labels)
    return total / len(latents)
