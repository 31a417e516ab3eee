"""Train the PixelCNN prior: a tokenizer's codes => runs/<name>/pipeline, an ArcVQPixelCNNPipeline.

accelerate launch scripts/train_pixelcnn.py
accelerate launch scripts/train_pixelcnn.py --config configs/mnist/pixelcnn.yaml
"""

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
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
from pipelines import ArcVQPixelCNNPipeline
from priors.pixelcnn import PixelCNN, code_grid, code_nll
from tokenizer import VQTokenizer

HELP = HelpPage(
    common=(
        *("config", "dry_run", "tokenizer", "ema_decay", "latents.mode", "data.name", "data.num_workers"),
        *("prior.channels", "prior.num_layers", "prior.head_channels"),
        *("optim.max_steps", "optim.batch_size", "optim.lr"),
        *("run.name", "run.output_dir", "run.seed", "run.mixed_precision"),
    ),
    examples=(
        "arcvq train-pixelcnn",
        "arcvq train-pixelcnn --config mnist/pixelcnn.yaml --tokenizer runs/arc --run.name arc-pixelcnn",
    ),
    writes="OUTPUT_DIR/NAME/pipeline; checkpoints, metrics.jsonl and samples next to it",
    following="arcvq sample runs/pixelcnn, or arcvq evaluate generation runs/pixelcnn",
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
    # --- data: codes of the tokenizer, and the run that encodes them ---
    check(config)
    tokenizer = load_tokenizer(config.tokenizer)
    code_grid(tokenizer)  # a tokenizer that cannot be modelled is an error before encoding
    run, encoded = start(config, settings, tokenizer)

    # --- networks ---
    check_memory(run, partial(make_prior, config, encoded), "prior.channels or prior.num_layers")
    training = set_up(run, config, encoded)
    averaged = training.averaged
    pipeline = ArcVQPixelCNNPipeline(tokenizer, averaged, dict(enumerate(encoded.class_names))).to(run.device)

    # --- steps ---
    for batch in run.steps():
        training.step(batch)
        if run.is_due(run.config.sample_every):
            run.average.load_into(averaged)  # by every process: where the weights are sharded, each has a part
        if run.is_main and run.is_due(run.config.sample_every):
            run.write(held_out_bits(averaged, encoded.held_out, pixel_values(tokenizer)))
            save_preview(pipeline, run.picture("step"))

    # --- result ---
    run.average.load_into(averaged)
    finish(run, pipeline)


def make_parser() -> ScriptParser:
    """Declare the options."""
    parser = ScriptParser("Train a class-conditional PixelCNN prior.", "pixelcnn.yaml", HELP)
    parser.add_class_arguments(PixelCNN, "prior", skip={"codebook_size", "num_classes", "grid_size"})
    add_prior_options(parser, "pixelcnn", ema_decay=0.999)
    return parser


def check(config: Namespace) -> None:
    """Raise ValueError for options that cannot work, before time is spent."""
    check_run(config)
    check_share("ema_decay", config.ema_decay)
    if config.run.gradient_checkpointing:
        raise ValueError("the PixelCNN has no gradient checkpointing; leave out run.gradient_checkpointing")


def make_prior(config: Namespace, encoded: EncodedData) -> PixelCNN:
    """Build the PixelCNN for the codes and classes of the data."""
    return PixelCNN(
        codebook_size=encoded.tokenizer.config.codebook_size,
        num_classes=len(encoded.class_names),
        grid_size=code_grid(encoded.tokenizer),
        **config.prior.as_dict(),
    )


class PixelCNNTraining(PriorTraining):
    """A PixelCNN in training."""

    def terms(self, loss: Tensor) -> dict[str, Tensor]:
        return {"loss": loss, "bits_per_code": loss / math.log(2)}


def set_up(run: Run, config: Namespace, encoded: EncodedData) -> PriorTraining:
    """Build the networks and the optimizer, and load the newest checkpoint.

    Raises:
        ValueError: options that cannot work.
    """
    prior = make_prior(config, encoded)
    averaged = copy.deepcopy(prior).requires_grad_(False)
    model = run.prepare(prior, encoded.train, encoded.fingerprints, config.data.num_workers, config.ema_decay)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        codes = batch["codes"]  # (B, h, w)
        return code_nll(model(codes, batch["labels"], run.noise(len(codes))), codes).mean()

    return PixelCNNTraining(run, encoded, "PixelCNN", prior, averaged, loss)


@full_float32()
@torch.no_grad()
def held_out_bits(prior: PixelCNN, held_out: dict[str, Tensor], values: int) -> dict[str, float]:
    """Measure the bits of held-out images' codes: per code, and per each of the image's `values`."""
    codes = held_out["codes"]
    per_code = prior.bits_per_code(codes.to(prior.device), held_out["labels"].to(prior.device)).mean().item()
    return {"test_bits_per_code": per_code, "test_bits_per_dim": per_code * codes[0].numel() / values}


def pixel_values(tokenizer: VQTokenizer) -> int:
    """Count an image's values: pixels times channels."""
    return tokenizer.config.in_channels * tokenizer.config.image_size**2
