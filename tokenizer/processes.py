"""The arc loss over the tokens of all processes: each process's latents (n, D) -> the loss of the global batch.

Every process takes the share K / W of the codes against the tokens of all, so that W processes share the work of one.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.angular_margin import arc_terms


def several_processes() -> bool:
    """Whether this is one of several processes that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def global_arc_loss(latents: Tensor, codebook: Tensor, scale: float, margin: float, top_k: int) -> Tensor:
    """`arc_loss` of the latents (n, D) of all processes together, the same scalar on each of them.

    To be called by every process, with as many latents each: with other numbers the communication fails, or hangs. The
    gradient is W times that of the loss with respect to
    this process's latents: DistributedDataParallel's mean over the W processes makes of it the parameters' gradient
    of one process with the whole batch.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    share = slice(len(codebook) * rank // world, len(codebook) * (rank + 1) // world)
    terms, _ = arc_terms(_Gather.apply(latents), codebook[share], scale, margin, top_k)
    return _Total.apply(terms.sum()) / len(codebook)


class _Gather(torch.autograd.Function):
    """The tokens (n, D) of every process, (W n, D); their gradients from all processes are summed by their owner."""

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


class _Total(torch.autograd.Function):
    """The sum of a scalar over processes; its gradient is W, not 1: see `global_arc_loss`."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * dist.get_world_size()
