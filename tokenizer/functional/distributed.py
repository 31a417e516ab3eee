"""Collective operations over the tokens of all processes: sums, gathers, and look-ups in the global batch.

Every process holds equally many tokens (n, D); the global batch is their concatenation (W n, D) in the order of the
ranks. Without a process group of several processes, the local batch is the global one.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes; every process must call this, and every process gets the sum. No gradient."""
    if is_distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def all_gather(tokens: Tensor) -> Tensor:
    """Gather the global batch (W n, D) from each process's tokens (n, D); every process must call this. No gradient."""
    return all_gather_with_gradient(tokens) if is_distributed() else tokens


@torch.no_grad()
def take_global(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take the tokens (M, D) at `indices` (M,) of the global batch, where `tokens` (n, D) is this process's share.

    Every process must call this with the same indices. Each token comes from the process that holds it, so that no
    others are communicated.
    """
    if not is_distributed():
        return tokens[indices]
    local = indices - dist.get_rank() * len(tokens)
    is_local = (local >= 0) & (local < len(tokens))
    return all_reduce_sum(torch.where(is_local[:, None], tokens[local.clamp(0, len(tokens) - 1)], 0))


def global_count(tokens: Tensor) -> int:
    """Return the number of tokens of all processes, each of which holds as many as this one."""
    return len(tokens) * (dist.get_world_size() if is_distributed() else 1)


def all_gather_with_gradient(tokens: Tensor) -> Tensor:
    """Gather the global batch (W n, D); the gradients of all processes are summed at the process that holds a token."""
    return _AllGather.apply(tokens)


def all_reduce_sum_with_gradient(value: Tensor) -> Tensor:
    """Sum a tensor over all processes; its gradient is multiplied by W.

    DistributedDataParallel averages gradients over the W processes, which undoes the factor.
    """
    return _AllReduceSum.apply(value)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        gathered = tokens.new_empty(dist.get_world_size() * len(tokens), tokens.shape[1])
        dist.all_gather_into_tensor(gathered, tokens.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // dist.get_world_size(), gradient.shape[1])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()
