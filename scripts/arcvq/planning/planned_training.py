"""A training set up on batches without contents: without processes, data and a run folder."""

import math
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import convert_outputs_to_fp32
from jsonargparse import Namespace
from torch import Tensor, nn

from arcvq.planning.planned_data import PlannedEncodedData, PlannedImages
from arcvq.runs.ema import Average
from arcvq.runs.options import RunConfig
from arcvq.runs.run import Run
from arcvq.runs.settings import resolve_settings_conflict
from arcvq.runs.trained_module import TrainableModule
from tokenizer.data.facts import DatasetInfo
from tokenizer.data.step_batches import check_shares
from tokenizer.losses.lpips import RandomWeights

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PlannedTraining:
    """A training as its module sets it up, for steps that are estimated or timed.

    Networks that are read from files, LPIPS's or a tokenizer to start from, have random weights: their sizes alone
    matter.

    Args:
        module: the training, a module with `set_up`.
        config: its options.
        settings: the same as plain values.
        data: the sizes of its data.
        processes: the number of processes to plan for.

    Attributes:
        run: the run without a folder.
        training: the result of `set_up`.
        data: as given.
        batches: the batches of one step of one process.

    Raises:
        ValueError: the training would raise it before its first step.
    """

    def __init__(
        self,
        module: ModuleType,
        config: Namespace,
        settings: dict[str, Any],
        data: PlannedImages | PlannedEncodedData,
        processes: int,
    ):
        config = config.clone()
        if "weights" in config:
            config.weights = RandomWeights()
        if "start_from" in config:
            config.start_from = None
        self.run = DryRun(config.run, config.optim, settings, DryAccelerator(config.run.mixed_precision, processes))
        self.training = module.set_up(self.run, config, data.as_training_data())
        self.data = data
        self.batches = data.batches(self.run.images_here, config.optim.accumulation)
        self._config = config

    @property
    def tokens_per_image(self) -> int:
        """Latent tokens of an image."""
        return math.prod(self.training.tokenizer.latent_shape[1:])

    def step(self) -> None:
        """Make the step of the training that computes most."""
        if "adversarial" in self._config:
            self.run.step = self._config.adversarial.fullest_step(self.run.optim.max_steps)
        for batch in self.batches:
            self.training.step(batch)


class DryAccelerator:
    """Stand-in for accelerate.Accelerator: one CPU process that reports `processes` of them."""

    device = torch.device("cpu")
    distributed_type = DistributedType.NO
    process_index = 0
    is_main_process = True

    def __init__(self, mixed_precision: str | None, processes: int):
        self.mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.num_processes = processes
        self.scaler = torch.amp.GradScaler(self.device.type) if self.mixed_precision == "fp16" else None

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Let the module compute under autocast and return float32, as accelerate does on one process."""
        if self.mixed_precision != "no":
            autocast = torch.autocast(self.device.type, _DTYPES[self.mixed_precision])
            module.forward = convert_outputs_to_fp32(autocast(module.forward))
        optimizer.step_was_skipped = False
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def no_sync(self, module: nn.Module) -> AbstractContextManager:
        return nullcontext()

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class DryFolder:
    """Stand-in for a RunFolder: compares settings with those in the folder, and neither locks nor writes."""

    def __init__(self, config: RunConfig):
        self.path = Path(config.output_dir) / config.name
        self._policy = config.other_settings

    def check_settings(self, file: str, settings: dict[str, Any]) -> None:
        """Raise ValueError where the folder holds a run of other settings, and the policy is `refuse`."""
        resolve_settings_conflict(self.path / file, settings, self._policy, is_main=False)


class DryRun(Run):
    """A run without a folder, data and other processes."""

    accelerator: DryAccelerator

    def _open_files(self) -> DryFolder:
        return DryFolder(self.config)

    @property
    def images_here(self) -> int:
        """Images of a step for one process."""
        return self.optim.batch_size // self.accelerator.num_processes

    @property
    def modules(self) -> Sequence[TrainableModule]:
        """The modules in training, each with its optimizer."""
        return self._trained

    def _write_line(self) -> None:
        """Write nothing."""

    def prepare(
        self,
        model: nn.Module,
        dataset: DatasetInfo,
        inputs: dict[str, str],
        num_workers: int = 0,
        ema_decay: float | None = None,
    ) -> nn.Module:
        """Check the batch size, and wrap the model; neither open a folder nor load a checkpoint."""
        check_shares(len(dataset), self.optim.batch_size, 0, self.accelerator.num_processes)
        self.model = model
        self.main = self.add_module(model, "model")
        if ema_decay is not None:
            self.average = Average(model, ema_decay)
        return self.main.wrapped
