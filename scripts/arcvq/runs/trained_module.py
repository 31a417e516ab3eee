"""A module in training: wrapped for this machine, with its optimizer, gradient norm and skipped updates."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from arcvq.runs.faster_modules import compile_in_place, keep_norms_in_input_precision
from arcvq.runs.options import OptimConfig, RunConfig


class TrainableModule:
    """A module and its AdamW optimizer.

    Uses channels-last weights (except under FSDP, which does not support them), fused AdamW and, if asked, gradient
    checkpointing and torch.compile on the first call.

    Args:
        accelerator: of the run.
        module: the module as its author wrote it.
        name: its name in the log.
        optim: options of the optimizer.
        config: options of the run.
        captured: whether the step is captured as a CUDA graph, which reads the learning rate from the device.

    Attributes:
        module: the module itself.
        wrapped: the module as accelerate has wrapped it; call this one where gradients are needed.
        optimizer: over its parameters.
        gradient_norm: of the last step, before clipping; None before the first step.
        updated: whether the last step has updated the parameters, a bool scalar; None before the first step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        name: str,
        optim: OptimConfig,
        config: RunConfig,
        captured: bool = False,
    ):
        is_shared = accelerator.distributed_type == DistributedType.FSDP
        self.module = module if is_shared else module.to(memory_format=torch.channels_last)
        self.name = name
        if config.gradient_checkpointing and isinstance(module, ModelMixin):
            module.enable_gradient_checkpointing()
        if accelerator.mixed_precision == "bf16" and accelerator.device.type == "cuda":
            keep_norms_in_input_precision(module)
        if config.compile:
            compile_in_place(module)
        # A fused optimizer skips a step by a flag on the device, for which the host does not wait.
        self._learning_rate = torch.full((), optim.lr, device=accelerator.device) if captured else None
        options = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
        if captured:
            options |= {"lr": self._learning_rate, "capturable": True}
        # Frozen parameters as well, which stay without a gradient: states fit whatever is frozen when a run resumes.
        self._adam = torch.optim.AdamW(module.parameters(), fused=True, **options)
        self._adam.register_load_state_dict_pre_hook(_with_own_options)
        self.wrapped, self.optimizer = accelerator.prepare(module, self._adam)
        self.gradient_norm: Tensor | None = None
        self.updated: Tensor | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []  # each with its values before the step
        self._is_shared = is_shared
        self._accelerator = accelerator
        self._max_grad_norm = optim.max_grad_norm
        self._max_grad_value = optim.max_grad_value

    def begin(self, learning_rate: float) -> None:
        """Begin a step: set training mode and the learning rate, and remember the buffers."""
        self.module.train()
        if self._learning_rate is not None:
            learning_rate = self._learning_rate.fill_(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.gradient_norm = self.updated = None
        keep(self._buffers, self.module.buffers())

    def no_sync(self, enabled: bool) -> AbstractContextManager:
        """Return a context for a forward and backward pass; if `enabled`, gradients are not all-reduced in it."""
        return self._accelerator.no_sync(self.wrapped) if enabled else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss, scaled if the precision is fp16."""
        self._accelerator.backward(loss)

    def optimizer_step(self, loss: Tensor) -> Tensor:
        """Take one optimizer step and clear the gradients.

        The step is skipped on all processes if `loss`, a scalar, or the gradient is not finite on any of them; then the
        buffers also get back the values that they had before the step.

        Returns:
            whether the parameters were updated, a bool scalar.
        """
        scaler = self._accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self._adam)
        self.gradient_norm = self._clipped_norm()
        both = torch.stack([self.gradient_norm, loss.detach()])
        self.updated = on_all(self._accelerator, (both.abs() < torch.inf).all())
        if not self._is_shared:
            self._adam.found_inf = (~self.updated).to(torch.float32)  # makes the fused optimizer skip the step
            self._adam.step()
        elif self.updated:  # sharded optimizers ignore found_inf; their steps are long enough to wait for the flag
            self._adam.step()
        if scaler is not None:
            scaler.update()
        self.optimizer.zero_grad()
        restore(self._buffers, unless=self.updated)
        return self.updated

    def _clipped_norm(self) -> Tensor:
        """Return the gradient's norm before clipping, and clip the gradient, or its values, as the options say."""
        parameters = list(self.module.parameters())
        if self._max_grad_norm is not None:
            clip = self._accelerator.clip_grad_norm_ if self._is_shared else nn.utils.clip_grad_norm_
            return unsharded(clip(parameters, self._max_grad_norm))
        norm = unsharded(nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None]))
        if self._max_grad_value is not None:
            nn.utils.clip_grad_value_(parameters, self._max_grad_value)
        return norm


def _with_own_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace a loaded state's options by this optimizer's, as a run may resume with another weight decay."""
    own = {name: value for name, value in optimizer.param_groups[0].items() if name not in ("params", "lr")}
    return state | {"param_groups": [group | own for group in state["param_groups"]]}


def on_all(accelerator: Accelerator, condition: Tensor) -> Tensor:
    """Tell whether a bool scalar is true on all processes; every process calls this."""
    if accelerator.num_processes == 1:
        return condition
    return accelerator.reduce(condition.float(), "sum") == accelerator.num_processes


def first_nonfinite_parameter(modules: Iterable[TrainableModule]) -> str | None:
    """Return the name of the first parameter that is not finite, or None. Waits for the device once."""
    named = [pair for trained in modules for pair in trained.module.named_parameters()]
    finite = torch.stack([unsharded(weight.detach().isfinite().all()) for _, weight in named]).tolist()
    return next((name for (name, _), whole in zip(named, finite, strict=True) if not whole), None)


def copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair each tensor with a copy of its values."""
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


@torch.no_grad()
def keep(pairs: list[tuple[Tensor, Tensor]], tensors: Iterable[Tensor]) -> None:
    """Bring the copies in `pairs` up to date, in place where they are of these tensors."""
    tensors = list(tensors)
    if [id(tensor) for tensor, _ in pairs] != [id(tensor) for tensor in tensors]:
        pairs[:] = copies(tensors)
    for tensor, copy in pairs:
        copy.copy_(tensor)


@torch.no_grad()
def restore(pairs: Iterable[tuple[Tensor, Tensor]], unless: Tensor) -> None:
    """Set tensors back to their copies unless `unless`, a bool scalar, is true; the host does not wait for it."""
    for tensor, before in pairs:
        torch.where(unless, tensor, before, out=tensor)


def unsharded(tensor: Tensor) -> Tensor:
    """Gather a tensor that may be sharded over processes (FSDP); every process calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: Tensor, shard: Tensor) -> Tensor:
    """Shard a full tensor as `shard` is."""
    return distribute_tensor(tensor, shard.device_mesh, shard.placements) if isinstance(shard, DTensor) else tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of a batch to the device; images and latents (B, C, H, W) become channels-last."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, non_blocking=True, memory_format=layout)
