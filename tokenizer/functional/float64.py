"""Compute in float64 where a device has none: Apple's (mps) stops at float32."""

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Tell whether a device holds float64 tensors."""
    return device.type != "mps"


def real_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating-point dtype of a device: float64, or float32."""
    return torch.float64 if has_float64(device) else torch.float32


def where_float64(values: Tensor) -> Tensor:
    """Return values on their own device, or on the CPU if that device has no float64."""
    return values if has_float64(values.device) else values.cpu()


def as_float64(values: Tensor) -> Tensor:
    """Convert to float64, on the device that `where_float64` chooses."""
    return where_float64(values).double()
