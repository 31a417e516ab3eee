"""What makes a step fast and leaves its result: memory layout, optimiser, compilation."""

import torch
from run_options import OptimConfig
from torch import Tensor, nn


def lay_out(model: nn.Module) -> nn.Module:
    """The model with its convolutions' weights in channels-last, the layout in which convolutions are fastest."""
    return model.to(memory_format=torch.channels_last)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a batch on the device; images and latents (B, C, H, W) in channels-last."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=True, memory_format=layout)


def make_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters of `model`, its update fused into one pass."""
    return torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
