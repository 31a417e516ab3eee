"""What the trainings of the priors share: their options, what they start from, and how they end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace
from torch import Tensor, nn

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.parser import ScriptParser
from arcvq.planning.dry_run import add_dry_run
from arcvq.planning.dry_training import DryRun, DryTraining
from arcvq.planning.planned_data import PlannedEncodedData
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.results import note_other_data
from arcvq.runs.run import Run
from arcvq.sampling.options import save_final_samples
from arcvq.training.latent_cache import EncodedData, LatentsConfig, encode_splits
from pipelines.class_conditional import ClassConditionalPipeline
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig
from tokenizer.data.facts import DatasetInfo


@dataclass(frozen=True)
class PriorTraining:
    """A prior in training.

    Attributes:
        prior: the network.
        averaged: a copy, to hold its average.
        loss: of a batch of latents (B, D, h, w), not scaled, codes (B, h, w) and labels (B,).
    """

    prior: nn.Module
    averaged: nn.Module
    loss: Callable[[dict[str, Tensor]], Tensor]


def add_prior_options(parser: ScriptParser, name: str, ema_decay: float) -> None:
    """Adds the options of a prior's training, whose run is called `name`."""
    parser.add_argument("--tokenizer", type=str, default="runs/tokenizer", help="tokenizer folder, or its run folder")
    parser.add_argument("--ema_decay", type=float, default=ema_decay, help="of the averaged weights that are saved")
    parser.add_class_arguments(LatentsConfig, "latents")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(RunConfig, "run")
    add_dry_run(parser)
    parser.set_defaults({"run.name": name})


def plan_prior(
    config: Namespace, name: str, set_up: Callable[[Run, Namespace, PlannedEncodedData], PriorTraining]
) -> tuple[Callable[[DryRun, Namespace], DryTraining], DatasetInfo]:
    """What a dry run needs of a prior called `name`: how its training is set up, and its images.

    Raises:
        ValueError: there is no such tokenizer, or it is one of other images.
    """
    planned = PlannedEncodedData(config.tokenizer, config.data, config.latents)

    def make(run: DryRun, config: Namespace) -> DryTraining:
        training = set_up(run, config, planned)
        return planned.dry_training(run, training.loss, {name: training.prior}, training.averaged)

    return make, planned.train


def start(parser: ScriptParser, config: Namespace, tokenizer: VQTokenizer) -> tuple[Run, EncodedData]:
    """The run, and its images as this tokenizer's latents and codes. Raises ValueError for what cannot work."""
    data, latents = config.data, config.latents
    run = Run(config.run, config.optim, parser.settings(config))
    if run.is_main:
        note_other_data(config.tokenizer, data)
    splits = announced_splits(data)
    run.data = str(splits)
    return run, encode_splits(tokenizer, splits, data, latents, Path(config.run.output_dir, "cache"), run.device)


def finish(run: Run, pipeline: ClassConditionalPipeline) -> None:
    """Writes the pipeline's folder, and samples of it."""
    folder = run.export("pipeline", pipeline.save_pretrained)
    if run.is_main:
        # From the folder and not from memory: the pictures show what a user of the folder gets.
        saved = type(pipeline).from_pretrained(folder).to(run.device)
        save_final_samples(saved, run.folder / "samples", run.config.seed)
        print(f"pipeline: {folder}")
