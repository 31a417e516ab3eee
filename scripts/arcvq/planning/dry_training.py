"""A training set up for a dry run, or for a few steps to be measured: without processes, data and run folder."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from arcvq.planning.fake_memory import Unallocated
from arcvq.runs.ema import Average
from arcvq.runs.folder import RunFolder
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.runs.settings import resolve_settings_conflict
from arcvq.runs.trained_module import TrainableModule
from tokenizer.data.batches import check_shares
from tokenizer.data.facts import DatasetInfo

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DryTraining:
    """A training as a script sets it up.

    Attributes:
        step: makes one step.
        parts: of the networks that are trained, by name.
        batch: its tensors.
        frozen: networks that are not trained, by name.
        averaged: copies of a trained network that hold its average.
        tokens_per_image: latent tokens.
        source: what is read from disk.
        bytes_per_epoch: of that.
        bytes_held: of a data set in memory, which is then read once.
    """

    step: Callable[[], None]
    parts: dict[str, nn.Module]
    batch: Sequence[Tensor]
    frozen: dict[str, nn.Module]
    averaged: Sequence[nn.Module]
    tokens_per_image: int
    source: str
    bytes_per_epoch: int
    bytes_held: int = 0


class DryAccelerator:
    """In the place of accelerate's, in one process that reckons with several, on a CPU."""

    device = torch.device("cpu")
    distributed_type = DistributedType.NO
    process_index = 0
    is_main_process = True

    def __init__(self, mixed_precision: str | None, processes: int):
        self.mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.num_processes = processes
        self.scaler = object() if self.mixed_precision == "fp16" else None  # all that is asked is whether there is one

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """As accelerate does on one process: the module computes under autocast, and gives float32."""
        if self.mixed_precision != "no":
            autocast = torch.autocast(self.device.type, _DTYPES[self.mixed_precision])
            module.forward = convert_outputs_to_fp32(autocast(module.forward))
        optimizer.step_was_skipped = False
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_sync(self, module: nn.Module) -> AbstractContextManager:
        return nullcontext()

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class DryFolder(RunFolder):
    """In the place of a run's folder: it is looked at, and neither held nor written to."""

    def __init__(self, config: RunConfig):
        self.path = Path(config.output_dir) / config.name
        self._policy = config.other_settings

    def check_settings(self, file: str, settings: dict[str, Any]) -> None:
        """As in a training, and nothing is renamed."""
        resolve_settings_conflict(self.path / file, settings, self._policy, is_main=False)


class DryRun(Run):
    """In the place of a `Run`: it has the same modules in training, and neither processes nor a folder.

    Args:
        config: as of a run.
        optim: as of a run.
        settings: as of a run.
        processes: how many there would be.
        memory: what counts the bytes; None where they are real.
    """

    accelerator: DryAccelerator

    def __init__(
        self,
        config: RunConfig,
        optim: OptimConfig,
        settings: dict[str, Any],
        processes: int,
        memory: Unallocated | None,
    ):
        self._memory = memory
        super().__init__(config, optim, settings, DryAccelerator(config.mixed_precision, processes))

    def _open_files(self) -> RunFolder:
        return DryFolder(self.config)

    @property
    def images_here(self) -> int:
        """Images of a step for one process."""
        return self.optim.batch_size // self.accelerator.num_processes

    def prepare(
        self,
        model: nn.Module,
        dataset: DatasetInfo,
        inputs: dict[str, str],
        num_workers: int = 0,
        ema_decay: float | None = None,
    ) -> nn.Module:
        """As in a training, but for the run folder."""
        check_shares(len(dataset), self.optim.batch_size, 0, self.accelerator.num_processes)
        self.model = model
        self.main = self.add_module(model, "model")
        if ema_decay is not None:
            self.average = Average(model, ema_decay)
            if self._memory is not None:
                self._memory.assign("average", self.average.tensors)
        return self.main.wrapped

    def add_module(self, module: nn.Module, name: str) -> TrainableModule:
        """A module in training, counted."""
        trained = super().add_module(module, name)
        if self._memory is None:
            return trained
        self._memory.trained(trained.module, trained.optimizer)
        if self.accelerator.num_processes > 1:  # DistributedDataParallel's, beside the gradients
            sizes = [parameter.nbytes for parameter in trained.module.parameters() if parameter.requires_grad]
            self._memory.add("gradients in exchange", sum(sizes))
        return trained
