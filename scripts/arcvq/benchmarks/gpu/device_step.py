"""A training's own step on a device, on batches without contents: no run folder, no loader, no other process."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from arcvq.planning.dry_run import plan_data
from arcvq.planning.planned_data import PlannedEncodedData, PlannedImages
from arcvq.planning.planned_training import DryAccelerator, DryRun
from arcvq.runs.trained_module import on_device

# No step logs, saves or ends the training.
_ENDLESS = ("--run.log_every=1000000000", "--optim.max_steps=1000000000")


class DeviceAccelerator(DryAccelerator):
    """One process on `device`."""

    def __init__(self, mixed_precision: str | None, device: torch.device):
        super().__init__(mixed_precision, processes=1)
        self.device = device
        if self.scaler is not None:
            self.scaler = torch.amp.GradScaler(device.type)

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Move the module to the device, and let it compute under autocast."""
        return super().prepare(module.to(self.device), optimizer)


@dataclass(frozen=True)
class DeviceTraining:
    """A training as its module sets it up on a device.

    Attributes:
        run: the run, without a folder.
        training: the result of the module's `set_up`.
        data: the sizes of its data.
    """

    run: DryRun
    training: Any
    data: PlannedImages | PlannedEncodedData

    @classmethod
    def of(cls, module: ModuleType, arguments: Sequence[str], device: torch.device) -> "DeviceTraining":
        """Set up the training of a command line."""
        parser = module.make_parser()
        config = parser.parse([*arguments, *_ENDLESS])
        module.check(config)
        data = plan_data(config)
        accelerator = DeviceAccelerator(config.run.mixed_precision, device)
        run = DryRun(config.run, config.optim, parser.settings(config), accelerator)
        return cls(run, module.set_up(run, config, data.as_training_data()), data)

    def batch(self) -> dict[str, Tensor]:
        """Make a batch on the device: normal latents, images and codes of zeros."""
        (batch,) = self.data.batches(self.run.images_here, 1)
        drawn = {"latents": torch.randn, "images": torch.zeros}
        return {
            name: on_device(drawn[name](tensor.shape) if name in drawn else tensor, self.run.device)
            for name, tensor in batch.items()
        }

    def step(self, batch: dict[str, Tensor]) -> None:
        """Make a step as the training does."""
        for trained in self.run.modules:
            trained.begin(self.run.optim.learning_rate(self.run.step))
        if self.run.average is not None:
            self.run.average.begin_step()
        self.training.step(batch)
