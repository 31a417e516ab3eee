"""Check whether this machine has the memory to train a model, before the model is built."""

import math
import os
from collections.abc import Callable

import psutil
import torch
from torch import nn

from arcvq.runs.run import Run

# Bytes per float32 parameter: trained, with its gradient and AdamW's two moments; and frozen.
_TRAINED, _FROZEN = 16, 4


def check_memory(run: Run, make: Callable[[], nn.Module], options: str) -> None:
    """Check that this machine can train the model that `make` builds; build it without memory for that.

    Args:
        run: says on which device, and with how many processes.
        make: builds the model.
        options: names the options that make the model smaller.

    Raises:
        ValueError: the model needs more memory than the machine has.
    """
    try:
        with torch.device("meta"):
            parameters = list(make().parameters())
    except RuntimeError as error:  # more bytes in one tensor than a 64-bit integer counts
        raise ValueError(f"the model cannot be built ({str(error).splitlines()[0]}): lower {options}") from error
    refuse_beyond(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() * (_TRAINED if parameter.requires_grad else _FROZEN) for parameter in parameters),
        machine_memory(run.device) * (run.accelerator.num_processes if _is_sharded() else 1),
        options,
    )


def refuse_beyond(parameters: int, needed: int, there: int, options: str) -> None:
    """Raise ValueError where more bytes are `needed` than are `there`."""
    if needed > there:
        raise ValueError(
            f"the model has {parameters:,} parameters, which take {math.ceil(needed / 2**30):,} GiB to train; this "
            f"machine has {there // 2**30:,} GiB: lower {options}"
        )


def machine_memory(device: torch.device) -> int:
    """Count the bytes of the device's memory; of a CPU those of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _is_sharded() -> bool:
    """Tell whether each process holds a shard of the weights."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"
