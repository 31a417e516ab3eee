"""Codebook usage: codes -> counts -> usage, perplexity.

Counts of several batches or processes can be added, so both numbers can be computed over a whole split. Computed over a
single batch they depend on its size.
"""

import torch
from torch import Tensor

from tokenizer.functional.float64 import real_dtype


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """Count how often each code occurs: `codes` int64 of any shape, values in [0, K) -> int64 (K,)."""
    codes = codes.flatten()
    # Not bincount, which synchronises with the device to read the largest code.
    counts = torch.zeros(codebook_size, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(0, codes, torch.ones_like(codes))


def usage(counts: Tensor) -> Tensor:
    """Return the share in [0, 1] of the codes that occur at least once, a `real_dtype` scalar."""
    return (counts > 0).to(real_dtype(counts.device)).mean()


def perplexity(counts: Tensor) -> Tensor:
    """Compute exp(-sum p log p) of the code frequencies p: a `real_dtype` scalar in [1, K]; 1 for a single code."""
    frequencies = counts.to(real_dtype(counts.device)) / counts.sum().clamp(min=1)
    return torch.exp(-torch.special.xlogy(frequencies, frequencies).sum())
