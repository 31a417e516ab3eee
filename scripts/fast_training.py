"""What makes a step fast and leaves its result: memory layout, optimiser, compilation."""

import torch
from accelerate import Accelerator
from run_options import OptimConfig
from torch import Tensor, nn


def prepare_model(
    accelerator: Accelerator, model: nn.Module, optim: OptimConfig, compiled: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model wrapped for this machine, and AdamW over its parameters.

    Convolutions' weights are laid out channels-last, in which convolutions are fastest; the optimiser's update is
    fused into one pass; `compiled` compiles the model when it is first called.
    """
    model = model.to(memory_format=torch.channels_last)
    if compiled:
        model.compile()  # in place: the parameters keep their names, so a checkpoint is the same either way
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
    )
    return accelerator.prepare(model, optimizer)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a batch on the device; images and latents (B, C, H, W) in channels-last."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=True, memory_format=layout)
