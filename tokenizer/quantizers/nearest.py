"""Nearest-code search in blocks of tokens: (N, D), (K, D) -> (N,) without an N x K table in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenizer.angular_margin import unit_vectors

# Entries of one block of scores; 4 Mi float32 are 16 MiB, about what stays in a processor's last cache.
_BLOCK_ENTRIES = 1 << 22


@torch.no_grad()
def most_similar(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The code of largest cosine similarity to each token (eqs. 8-9): (N, D), (K, D) -> (N,) int64."""
    # The token's own length does not change which code is first, so only the codes are normalised.
    directions = unit_vectors(codebook).T
    return _first(tokens, codebook.shape[0], lambda block: block @ directions)


@torch.no_grad()
def closest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The code of smallest euclidean distance to each token: (N, D), (K, D) -> (N,) int64."""
    half_squares = codebook.square().sum(dim=1) / 2
    # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the smallest distance is the largest bracket.
    return _first(tokens, codebook.shape[0], lambda block: torch.addmm(-half_squares, block, codebook.T))


def _first(tokens: Tensor, codebook_size: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    block = max(1, _BLOCK_ENTRIES // codebook_size)
    return torch.cat([score(part).argmax(dim=1) for part in tokens.split(block)])
