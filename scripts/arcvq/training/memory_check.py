"""Whether this machine has the memory to train a model, before any of it is taken."""

import math
import os
from collections.abc import Callable

import psutil
import torch
from torch import nn

from arcvq.planning.dry_training import DryRun
from arcvq.runs.run import Run

# Bytes of a parameter in training, in float32: itself, its gradient and AdamW's two averages.
_TRAINED, _FROZEN = 16, 4


def check_memory(run: Run, make: Callable[[], nn.Module], options: str) -> None:
    """Raises ValueError where the model that `make` builds cannot be trained here; it is built without any weights.

    A dry run takes no memory, and tells of a model of any size. `options` are those that make the model smaller.
    """
    if isinstance(run, DryRun):
        return
    with torch.device("meta"):
        parameters = list(make().parameters())
    refuse_beyond(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() * (_TRAINED if parameter.requires_grad else _FROZEN) for parameter in parameters),
        machine_memory(run.device) * (run.accelerator.num_processes if _is_sharded() else 1),
        options,
    )


def refuse_beyond(parameters: int, needed: int, there: int, options: str) -> None:
    """Raises ValueError where more bytes are needed than there are."""
    if needed > there:
        raise ValueError(
            f"the model has {parameters:,} parameters, which take {math.ceil(needed / 2**30):,} GiB to train; this "
            f"machine has {there // 2**30:,} GiB: lower {options}"
        )


def machine_memory(device: torch.device) -> int:
    """Bytes of the device, or of the machine where it is the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _is_sharded() -> bool:
    """Whether each process holds a part of the weights."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"
