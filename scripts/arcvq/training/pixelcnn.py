"""Trains the PixelCNN prior: a tokenizer's codes => runs/<name>/pipeline, an ArcVQPixelCNNPipeline.

accelerate launch scripts/train_pixelcnn.py
accelerate launch scripts/train_pixelcnn.py --config configs/mnist/pixelcnn.yaml
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
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
from pipelines import ArcVQPixelCNNPipeline
from priors.pixelcnn import PixelCNN, code_grid, code_nll
from tokenizer import VQTokenizer
from tokenizer.data.facts import DatasetInfo


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Train a class-conditional PixelCNN prior.", digits_config="pixelcnn.yaml")
    parser.add_class_arguments(PixelCNN, "prior", skip={"codebook_size", "num_classes", "grid_size"})
    add_prior_options(parser, "pixelcnn", ema_decay=0.999)
    return parser


def check(config: Namespace) -> None:
    """Raises ValueError for options that cannot work, before time is spent."""
    check_run(config)
    check_share("ema_decay", config.ema_decay)
    if config.run.gradient_checkpointing:
        raise ValueError("the PixelCNN has no gradient checkpointing; leave out run.gradient_checkpointing")


def set_up(run: Run, config: Namespace, stage_one: EncodedData | PlannedEncodedData) -> PriorTraining:
    """Builds what is trained, and takes up the newest checkpoint. Raises ValueError for options that cannot work."""
    make = partial(
        PixelCNN,
        codebook_size=stage_one.tokenizer.config.codebook_size,
        num_classes=len(stage_one.class_names),
        grid_size=code_grid(stage_one.tokenizer),
        **config.prior.as_dict(),
    )
    check_memory(run, make, "prior.channels or prior.num_layers")
    prior = make()
    averaged = copy.deepcopy(prior).requires_grad_(False)
    inputs, num_workers = stage_one.fingerprints, config.data.num_workers
    model = run.prepare(prior, stage_one.train, inputs, num_workers, config.ema_decay)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        codes = batch["codes"]  # (B, h, w)
        return code_nll(model(codes, batch["labels"]), codes).mean()

    return PriorTraining(prior, averaged, loss)


def plan(config: Namespace) -> tuple[Callable[[DryRun, Namespace], DryTraining], DatasetInfo]:
    """What a dry run needs: how the training is set up, and its images. Raises ValueError as that does."""
    check(config)
    return plan_prior(config, "PixelCNN", set_up)


def main(args: Sequence[str] | None = None) -> DryReport | None:
    """Trains, or resumes, until `optim.max_steps`, and writes the pipeline; or says what that takes."""
    parser = make_parser()
    config = parser.parse(args)
    if config.dry_run is not None:
        return dry_run(parser, config, *plan(config))
    check(config)
    tokenizer = load_tokenizer(config.tokenizer)
    code_grid(tokenizer)  # a tokenizer that cannot be modelled is an error before encoding
    run, stage_one = start(parser, config, tokenizer)
    training = set_up(run, config, stage_one)
    averaged = training.averaged
    pipeline = ArcVQPixelCNNPipeline(tokenizer, averaged, dict(enumerate(stage_one.class_names))).to(run.device)

    for batch in map(stage_one.encode, run.steps()):
        loss = training.loss(batch)
        run.update(loss)
        run.log(loss=loss, bits_per_code=loss.detach() / math.log(2))
        if run.is_due(run.config.sample_every):
            run.average.load_into(averaged)  # by every process: where the weights are sharded, each has a part
        if run.is_main and run.is_due(run.config.sample_every):
            run.write(held_out_bits(averaged, stage_one.held_out, pixel_values(tokenizer)))
            save_preview(pipeline, run.picture("step"))

    run.average.load_into(averaged)
    finish(run, pipeline)
    return None


@torch.no_grad()
def held_out_bits(prior: PixelCNN, held_out: dict[str, Tensor], values: int) -> dict[str, float]:
    """Bits of the codes of held-out images: per code, and per value of an image that has so many."""
    codes = held_out["codes"]
    per_code = prior.bits_per_code(codes.to(prior.device), held_out["labels"].to(prior.device)).mean().item()
    return {"test_bits_per_code": per_code, "test_bits_per_dim": per_code * codes[0].numel() / values}


def pixel_values(tokenizer: VQTokenizer) -> int:
    """Pixels times channels of an image."""
    return tokenizer.config.in_channels * tokenizer.config.image_size**2
