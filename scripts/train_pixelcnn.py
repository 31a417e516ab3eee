"""Trains the PixelCNN prior: a tokenizer's codes => runs/<name>/pipeline, an ArcVQPixelCNNPipeline.

accelerate launch scripts/train_pixelcnn.py
accelerate launch scripts/train_pixelcnn.py --config configs/mnist/pixelcnn.yaml
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from command_line import ScriptParser, run_script
from common import Run
from dry_run import DryReport, DryRun, DryTraining, add_dry_run, dry_run
from encoding import LatentsConfig, StageOne, encode_splits
from jsonargparse import Namespace
from planned_stage_one import PlannedStageOne
from run_options import OptimConfig, RunConfig, check_share
from sampling import save_final_samples, save_preview
from stage_one import load_tokenizer, note_other_data
from torch import Tensor

from pipelines import ArcVQPixelCNNPipeline
from priors.pixelcnn import PixelCNN, code_nll
from tokenizer.data import DataConfig


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Train a class-conditional PixelCNN prior.", digits_config="pixelcnn.yaml")
    parser.add_argument("--tokenizer", type=str, default="runs/tokenizer", help="tokenizer folder, or its run folder")
    parser.add_class_arguments(PixelCNN, "prior", skip={"codebook_size", "num_classes", "grid_size"})
    parser.add_argument("--ema_decay", type=float, default=0.999, help="of the averaged weights that are saved")
    parser.add_class_arguments(LatentsConfig, "latents")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(RunConfig, "run")
    add_dry_run(parser)
    parser.set_defaults({"run.name": "pixelcnn"})
    return parser


@dataclass(frozen=True)
class Training:
    """A PixelCNN in training.

    Attributes:
        averaged: a copy, to hold its average.
        loss: of a batch of codes and labels, in nats per code.
    """

    prior: PixelCNN
    averaged: PixelCNN
    loss: Callable[[dict[str, Tensor]], Tensor]


def set_up(run: Run, config: Namespace, stage_one: StageOne | PlannedStageOne) -> Training:
    """Builds what is trained, and takes up the newest checkpoint. Raises ValueError for options that cannot work."""
    prior = PixelCNN(
        codebook_size=stage_one.tokenizer.config.codebook_size,
        num_classes=len(stage_one.class_names),
        grid_size=stage_one.tokenizer.latent_shape[1:],
        **config.prior.as_dict(),
    )
    averaged = copy.deepcopy(prior).requires_grad_(False)
    inputs, num_workers = stage_one.fingerprints, config.data.num_workers
    model = run.prepare(prior, stage_one.train, inputs, num_workers, config.ema_decay)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        codes = batch["codes"]  # (B, h, w)
        return code_nll(model(codes, batch["labels"]), codes).mean()

    return Training(prior, averaged, loss)


def make_dry_training(run: DryRun, config: Namespace, stage_one: PlannedStageOne) -> DryTraining:
    """The same on codes of no contents."""
    training = set_up(run, config, stage_one)
    return stage_one.dry_training(run, training.loss, {"PixelCNN": training.prior}, training.averaged)


def main(args: Sequence[str] | None = None) -> DryReport | None:
    """Trains, or resumes, until `optim.max_steps`, and writes the pipeline; or says what that takes."""
    parser = make_parser()
    config = parser.parse(args)
    check_share("ema_decay", config.ema_decay)
    data, latents = DataConfig(**config.data.as_dict()), LatentsConfig(**config.latents.as_dict())
    if config.dry_run is not None:
        planned = PlannedStageOne(config.tokenizer, data, latents)
        return dry_run(parser, config, partial(make_dry_training, stage_one=planned), planned.train)
    tokenizer = load_tokenizer(config.tokenizer)
    run = Run(RunConfig(**config.run.as_dict()), OptimConfig(**config.optim.as_dict()), parser.settings(config))
    if run.is_main:
        note_other_data(config.tokenizer, data)
    cache = Path(config.run.output_dir, "cache")
    stage_one = encode_splits(tokenizer, data, latents, cache, run.device)
    training = set_up(run, config, stage_one)
    averaged = training.averaged
    pipeline = ArcVQPixelCNNPipeline(tokenizer, averaged, dict(enumerate(stage_one.class_names))).to(run.device)

    for batch in map(stage_one.encode, run.steps()):
        loss = training.loss(batch)
        run.update(loss)
        run.log(loss=loss, bits_per_code=loss.detach() / math.log(2))
        if run.due(run.config.sample_every):
            run.load_averaged(averaged)  # by every process: where the weights are sharded, each has a part
        if run.is_main and run.due(run.config.sample_every):
            run.write({"test_bits_per_code": held_out_bits(averaged, stage_one.held_out)})
            save_preview(pipeline, run.picture("step"))

    run.load_averaged(averaged)
    folder = run.export("pipeline", pipeline.save_pretrained)
    if run.is_main:
        # From the folder and not from memory: the pictures show what a user of the folder gets.
        saved = ArcVQPixelCNNPipeline.from_pretrained(folder).to(run.device)
        save_final_samples(saved, run.folder / "samples", run.config.seed)
        print(f"pipeline: {folder}")
    return None


@torch.no_grad()
def held_out_bits(prior: PixelCNN, held_out: dict[str, Tensor]) -> float:
    """Bits per code of held-out images."""
    nll = prior.nll(held_out["codes"].to(prior.device), held_out["labels"].to(prior.device))
    return nll.mean().item() / math.log(2)


if __name__ == "__main__":
    run_script(main)
