"""Select the device to compute on."""

import torch

from tokenizer.functional.float64 import has_float64


def default_device() -> torch.device:
    """Return the accelerator of this machine (cuda, mps, xpu ...) if one is available, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def device_for(dtype: torch.dtype, device: torch.device) -> torch.device:
    """Return `device` if it computes in this dtype, else the CPU: mps has no float64."""
    return device if dtype != torch.float64 or has_float64(device) else torch.device("cpu")
