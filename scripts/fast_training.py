"""A module in training: wrapped for this machine, made fast without another result, with its optimiser."""

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator, DistributedType
from diffusers import ModelMixin
from run_options import OptimConfig, RunConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Trained:
    """A module and its AdamW.

    Convolutions' weights are laid out channels-last, in which convolutions are fastest (but where processes share them,
    FSDP, which cannot); the optimiser's update is fused into one pass; compiled, if at all, is the module when it is
    first called.

    Args:
        module: as its author wrote it.
        name: tells it from others in the log.

    Attributes:
        wrapped: the module for this machine; to be called where its parameters are to get gradients.
        optimizer: over its parameters.
        gradient_norm: of the last update, before it was clipped; None where it was not, or was left out.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module, name: str, optim: OptimConfig, config: RunConfig):
        is_shared = accelerator.distributed_type == DistributedType.FSDP
        self.module = module if is_shared else module.to(memory_format=torch.channels_last)
        self.name = name
        if config.gradient_checkpointing and isinstance(module, ModelMixin):
            module.enable_gradient_checkpointing()
        if config.compile:
            module.compile()  # in place: the parameters keep their names, so a checkpoint is the same either way
        # A fused optimiser leaves out a step for which the fp16 scaler has found an overflow, and tells no one.
        options = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
        optimizer = torch.optim.AdamW(module.parameters(), fused=accelerator.scaler is None, **options)
        self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)
        self.gradient_norm: Tensor | None = None
        self._accelerator = accelerator
        self._max_grad_norm = optim.max_grad_norm

    def begin(self, learning_rate: float) -> None:
        """To be called before every step."""
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def alone(self, alone: bool) -> AbstractContextManager:
        """Around a forward and backward pass; if `alone`, the processes do not exchange their gradients yet."""
        return self._accelerator.no_sync(self.wrapped) if alone else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss, scaled where the precision is fp16."""
        self._accelerator.backward(loss)

    def descend(self) -> bool:
        """One optimiser step down the gradients, which are then gone; False where the fp16 scaler left it out."""
        self.gradient_norm = None
        if self._max_grad_norm is not None:
            self.gradient_norm = whole(self._accelerator.clip_grad_norm_(self.module.parameters(), self._max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.optimizer.step_was_skipped:
            self.gradient_norm = None  # it is not finite
            return False
        return True


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a shard (FSDP), as a whole; to be called by all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: Tensor, shard: Tensor) -> Tensor:
    """A whole tensor, cut as `shard` is."""
    return distribute_tensor(tensor, shard.device_mesh, shard.placements) if isinstance(shard, DTensor) else tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of a batch on the device; images and latents (B, C, H, W) in channels-last."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=True, memory_format=layout)
