"""How much of a codebook is used: codes -> counts -> usage, perplexity.

Counts of several batches or processes add up, so both numbers can be taken over a whole split; taken over one batch
they depend on its size.
"""

import torch
from torch import Tensor


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs: int64 (K,), from int64 `codes` of any shape with values in [0, K)."""
    codes = codes.flatten()
    # scatter_add_ and not bincount, which waits for the device to learn the largest code.
    counts = torch.zeros(codebook_size, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(0, codes, torch.ones_like(codes))


def usage(counts: Tensor) -> Tensor:
    """Share in [0, 1] of the codes that occur at least once, a float64 scalar."""
    return (counts > 0).double().mean()


def perplexity(counts: Tensor) -> Tensor:
    """exp(-sum p log p) of the code frequencies p, a float64 scalar in [1, K]; 1 when one code does it all."""
    frequencies = counts.double() / counts.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(frequencies, frequencies).sum())
