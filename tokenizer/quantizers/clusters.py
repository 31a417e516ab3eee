"""Moving averages of a code's tokens: their number, their sum, and from both a row of the table.

VQ-VAE, van den Oord et al. 2017, app. A.1. With n_k tokens z of the global batch in cluster k, an update computes

    N_k <- g N_k + (1 - g) n_k,  m_k <- g m_k + (1 - g) sum z,  e_k = m_k / N~_k,
    N~_k = n (N_k + eps) / (n + K eps),  n = sum N,  eps = 1e-5.

Every process must call the functions that take tokens with its own; all get the same averages.
"""

import torch
from torch import Tensor

from tokenizer.functional.distributed import all_reduce_sum
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.row_sums import sum_rows
from tokenizer.quantizers.anchors import random_tokens

# Laplace smoothing of the cluster sizes, which avoids 0 / 0 for an empty cluster.
_EPSILON = 1e-5


def check_averages(option: str, decay: float, revive_below: float) -> None:
    """Raise ValueError for a decay, called `option`, outside [0, 1), or a revive_below that is negative or infinite."""
    if not 0 <= decay < 1:
        raise ValueError(f"{option} must be at least 0 and below 1, got {decay}")
    if not 0 <= revive_below < float("inf"):
        raise ValueError(f"revive_below must be at least 0 and finite, got {revive_below}")


def check_hits(hits: int, codebook_size: int, revive_below: float) -> None:
    """Raise ValueError if a batch of `hits` codes is too small to use every code `revive_below` times."""
    if hits < revive_below * codebook_size:
        raise ValueError(
            f"a batch of {hits} codes cannot hit each of {codebook_size} codes revive_below "
            f"{revive_below} times, so that codes in use are replaced in every update; raise "
            "optim.batch_size, or lower model.quantizer_options.revive_below"
        )


@torch.no_grad()
def average_sizes(sizes: Tensor, counts: Tensor, decay: float) -> None:
    """Update N_k, (K,) in place, with this process's counts n_k, (K,) int64, and those of the others."""
    sizes.lerp_(all_reduce_sum(counts).to(sizes.dtype), 1 - decay)


@torch.no_grad()
def average_sums(sums: Tensor, tokens: Tensor, codes: Tensor, decay: float) -> None:
    """Update m_k, (K, D) in place, with this process's tokens (N, D) of the codes (N,), and those of the others."""
    added = sum_rows(tokens, codes, len(sums))
    sums.lerp_(all_reduce_sum(added).to(sums.dtype), 1 - decay)


@torch.no_grad()
def revive(rows: Tensor, sizes: Tensor, tokens: Tensor, below: float, noise: ImageNoise, are_sums: bool) -> None:
    """Replace the rows of codes with N_k < `below` by random tokens of the global batch, with N_k = max(1, below).

    Args:
        rows: (K, D), changed in place.
        sizes: N_k, (K,), changed in place.
        tokens: (N, D), of this process.
        below: the size below which a code counts as unused, above 0.
        noise: of one row, equal on all processes.
        are_sums: whether the rows are m_k, sums over N_k tokens, instead of a table.
    """
    # All codes draw a token, so that no synchronisation is needed to count the dead ones.
    dead, size = sizes < below, max(1.0, below)
    drawn = random_tokens(tokens, dead.cumsum(0) - 1, noise)
    sizes.masked_fill_(dead, size)
    rows.copy_(torch.where(dead[:, None], size * drawn if are_sums else drawn, rows))


@torch.no_grad()
def cluster_means(sizes: Tensor, sums: Tensor) -> Tensor:
    """Compute the table e_k = m_k / N~_k, (K, D), of sizes N_k, (K,), and sums m_k, (K, D)."""
    total = sizes.sum()
    smoothed = total * (sizes + _EPSILON) / (total + len(sizes) * _EPSILON)
    return sums / smoothed[:, None]
