"""The k-means algorithm over the tokens of the global batch, with any look-up as its measure of closeness."""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenizer.functional.distributed import all_reduce_sum
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.row_sums import sum_rows
from tokenizer.functional.usage import code_counts
from tokenizer.quantizers.anchors import random_tokens

# Iterations of Lloyd's algorithm; the training goes on from there.
ITERATIONS = 10


@torch.no_grad()
def kmeans_table(
    tokens: Tensor, codebook_size: int, assign: Callable[[Tensor, Tensor], Tensor], noise: ImageNoise
) -> Tensor:
    """Cluster the tokens (N, D) of all processes by Lloyd's algorithm into K = `codebook_size` means, (K, D).

    The means start at random tokens. Each of `ITERATIONS` iterations assigns every token to a mean, and moves each mean
    to its tokens' mean; one without tokens stays where it is. Every process must call this with its own tokens; all get
    the same means, however the global batch is split. Nothing is read from the device.

    Args:
        tokens: (N, D), of this process.
        codebook_size: K; of more means than tokens, some are equal.
        assign: (N, D), (K, D) -> (N,) int64, the mean of each token.
        noise: of one row, equal on all processes.
    """
    means = random_tokens(tokens, torch.arange(codebook_size, device=tokens.device), noise)
    for _ in range(ITERATIONS):
        nearest = assign(tokens, means)
        counts = all_reduce_sum(code_counts(nearest, codebook_size))[:, None]
        sums = all_reduce_sum(sum_rows(tokens, nearest, codebook_size))
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    return means
