"""The parts that the trainings of all priors share: options, data, step and result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from torch import Tensor, nn

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.parser import ScriptParser
from arcvq.runs.named_scalars import Terms
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.results import note_other_data
from arcvq.runs.run import Run
from arcvq.training.latent_cache import EncodedData, LatentsConfig, encode_splits
from arcvq.training.parts import TrainingParts
from arcvq.training.preview import save_final_samples
from pipelines.class_conditional import ClassConditionalPipeline
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig


@dataclass(frozen=True)
class PriorTraining:
    """A prior in training.

    Attributes:
        run: the run that trains it.
        encoded: the tokenizer, and the data set as its latents and codes.
        name: the network's name in a report.
        prior: the network.
        averaged: a copy of the network, to hold the average of its weights.
        loss: maps a batch of latents (B, D, h, w), not scaled, codes (B, h, w) and labels (B,) to a scalar.
    """

    run: Run
    encoded: EncodedData
    name: str
    prior: nn.Module
    averaged: nn.Module
    loss: Callable[[dict[str, Tensor]], Tensor]

    @property
    def tokenizer(self) -> VQTokenizer:
        """The frozen tokenizer."""
        return self.encoded.tokenizer

    def step(self, batch: dict[str, Tensor]) -> None:
        """Accumulate one micro-batch's gradient, and log its loss; after the step's last one, update the weights."""
        loss = self.loss(self.encoded.encode(batch))
        self.run.update(loss, Terms.stack(self.terms(loss.detach())))

    def terms(self, loss: Tensor) -> dict[str, Tensor]:
        """Name what is logged of a micro-batch with this loss, a scalar."""
        return {"loss": loss}

    def parts(self) -> TrainingParts:
        """Name the networks."""
        return TrainingParts({self.name: self.prior}, {"tokenizer": self.tokenizer}, [self.averaged])


def add_prior_options(parser: ScriptParser, name: str, ema_decay: float) -> None:
    """Add the options of a prior's training, whose run is called `name`."""
    parser.add_argument("--tokenizer", type=str, default="runs/tokenizer", help="tokenizer folder, or its run folder")
    parser.add_argument("--ema_decay", type=float, default=ema_decay, help="of the averaged weights that are saved")
    parser.add_class_arguments(LatentsConfig, "latents")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(RunConfig, "run")
    parser.set_defaults({"run.name": name})


def start(config: Namespace, settings: dict[str, Any], tokenizer: VQTokenizer) -> tuple[Run, EncodedData]:
    """Start the run, and encode the data set with the tokenizer.

    Raises:
        ValueError: options that cannot work, or images of another size than the tokenizer's.
    """
    run = Run(config.run, config.optim, settings)
    if config.run.cuda_graph:
        run.capture(unless="the step of a prior draws random numbers")
    if run.is_main:
        note_other_data(config.tokenizer, config.data)
    splits = announced_splits(config.data)
    run.data = str(splits)
    cache = Path(config.run.output_dir, "cache")
    return run, encode_splits(tokenizer, splits, config.data, config.latents, cache, run.device)


def finish(run: Run, pipeline: ClassConditionalPipeline) -> None:
    """Write the pipeline's folder, and samples of it."""
    folder = run.export("pipeline", pipeline.save_pretrained)
    if run.is_main:
        # From the folder and not from memory: the pictures show what a user of the folder gets.
        saved = type(pipeline).from_pretrained(folder).to(run.device)
        save_final_samples(saved, run.folder / "samples", run.config.seed)
        print(f"pipeline: {folder}")
