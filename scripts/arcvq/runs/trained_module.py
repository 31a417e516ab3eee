"""A module in training: wrapped for this machine, made fast without another result, with its optimiser."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from arcvq.runs.options import OptimConfig, RunConfig


class TrainableModule:
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
        gradient_norm: of the last step, before it was clipped; None where fp16 scales gradients that are not clipped.
        updated: whether the last step's update was made, a bool scalar; None before it.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module, name: str, optim: OptimConfig, config: RunConfig):
        is_shared = accelerator.distributed_type == DistributedType.FSDP
        self.module = module if is_shared else module.to(memory_format=torch.channels_last)
        self.name = name
        if config.gradient_checkpointing and isinstance(module, ModelMixin):
            module.enable_gradient_checkpointing()
        if config.compile:
            module.compile()  # in place: the parameters keep their names, so a checkpoint is the same either way
        # A fused optimiser leaves out a step for which an overflow was found without the host's knowing. fp16's scaler
        # counts on knowing.
        options = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
        self._adam = torch.optim.AdamW(module.parameters(), fused=accelerator.scaler is None, **options)
        self._adam.register_load_state_dict_pre_hook(_with_own_options)
        self.wrapped, self.optimizer = accelerator.prepare(module, self._adam)
        self.gradient_norm: Tensor | None = None
        self.updated: Tensor | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._is_shared = is_shared
        self._accelerator = accelerator
        self._max_grad_norm = optim.max_grad_norm

    def begin(self, learning_rate: float) -> None:
        """To be called before every step."""
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.gradient_norm = self.updated = None
        self._buffers = copies(self.module.buffers())

    def no_sync(self, enabled: bool) -> AbstractContextManager:
        """Around a forward and backward pass; if `enabled`, the processes do not exchange their gradients yet."""
        return self._accelerator.no_sync(self.wrapped) if enabled else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a loss, scaled where the precision is fp16."""
        self._accelerator.backward(loss)

    def optimizer_step(self, loss: Tensor) -> Tensor:
        """One optimiser step down the gradients, which are then gone; whether it was made, a bool scalar.

        It is not made where `loss`, a scalar, or the gradient is not finite on any of the processes, and what the
        passes before it have done to buffers is taken back.
        """
        device = self._accelerator.device
        if self._accelerator.scaler is not None:
            self.gradient_norm = self._clipped_norm() if self._max_grad_norm is not None else None
            self.optimizer.step()
            self.updated = torch.tensor(not self.optimizer.step_was_skipped, device=device)
        else:
            self.gradient_norm = self._clipped_norm()
            self.updated = on_all(self._accelerator, self.gradient_norm.isfinite() & loss.detach().isfinite())
            if not self._is_shared:
                self._adam.found_inf = (~self.updated).to(torch.float32)  # whatever the weights are
                self.optimizer.step()
            elif self.updated:  # shards know no found_inf, and their step is long enough to wait for the answer
                self.optimizer.step()
        self.optimizer.zero_grad()
        restore(self._buffers, unless=self.updated)
        return self.updated

    def _clipped_norm(self) -> Tensor:
        """The gradient's norm, which is clipped afterwards where that is asked for."""
        parameters = list(self.module.parameters())
        if self._max_grad_norm is not None:
            return whole(self._accelerator.clip_grad_norm_(parameters, self._max_grad_norm))
        return whole(nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None]))


def _with_own_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A stored state with this optimiser's own options: a run may go on with another weight decay, or without fp16."""
    own = {name: value for name, value in optimizer.param_groups[0].items() if name not in ("params", "lr")}
    return state | {"param_groups": [group | own for group in state["param_groups"]]}


def on_all(accelerator: Accelerator, condition: Tensor) -> Tensor:
    """Whether a bool scalar is true on all processes; to be called by all of them."""
    if accelerator.num_processes == 1:
        return condition
    return accelerator.reduce(condition.float(), "sum") == accelerator.num_processes


def first_broken(every: Iterable[TrainableModule]) -> str | None:
    """The name of the first parameter of modules that is not finite. Waits for the device."""
    named = (pair for trained in every for pair in trained.module.named_parameters())
    return next((name for name, weight in named if not weight.isfinite().all()), None)


def copies(tensors: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor beside a copy of its values."""
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


@torch.no_grad()
def restore(pairs: Iterable[tuple[Tensor, Tensor]], unless: Tensor) -> None:
    """Gives tensors their copies' values again unless a bool scalar is true; the host does not wait for it."""
    for tensor, before in pairs:
        tensor.copy_(torch.where(unless, tensor, before))


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
