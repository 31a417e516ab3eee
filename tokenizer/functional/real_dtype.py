"""The widest floating-point dtype of a kind of device: float64, where there is one."""

import torch

# Apple's GPUs have no float64, and an operation that would give one is an error there.
WITHOUT_FLOAT64 = {"mps"}


def real_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for a device without it."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64
