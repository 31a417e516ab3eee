"""What a quantizer asks of the tokens of all processes: the arc loss, sums, tokens of the whole batch.

Of the arc loss every process takes the share K / W of the codes against the tokens of all, so that W processes share
the work of one.
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


@torch.no_grad()
def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on each of them; to be called by every process."""
    if several_processes():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def gathered(tokens: Tensor) -> Tensor:
    """The tokens (n, D) of all processes, (W n, D), in the order of the whole batch; to be called by every process."""
    return _Gather.apply(tokens) if several_processes() else tokens


@torch.no_grad()
def tokens_at(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens at these places (M,) of the whole batch, (M, D), of which this process has its share `tokens` (n, D).

    To be called by every process with the same places. Each token comes from its owner: none is gathered in vain.
    """
    if not several_processes():
        return tokens[places]
    own = places - dist.get_rank() * len(tokens)
    here = (own >= 0) & (own < len(tokens))
    return summed(torch.where(here[:, None], tokens[own.clamp(0, len(tokens) - 1)], 0))


def whole_batch(tokens: Tensor) -> int:
    """How many tokens all processes have, of which each has as many as this one."""
    return len(tokens) * (dist.get_world_size() if several_processes() else 1)


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
