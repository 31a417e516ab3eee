"""Soft assignment q(k | z) ~ exp(-1/2 sum_d prec_d (z_d - e_kd)^2): logits, likeliest code, relaxed samples.

tokens (N, D), precision (N, 1) or (N, D), codebook (K, D) -> logits (N, K)

The logits are one matrix product; no N x K x D tensor is formed.
"""

import torch
from torch import Tensor

from tokenizer.functional.nearest import largest_product
from tokenizer.functional.vectors import inner_products


def code_logits(tokens: Tensor, precision: Tensor, codebook: Tensor) -> Tensor:
    """Compute -1/2 sum_d prec_d (z_d - e_kd)^2 up to a constant per token: (N, K)."""
    return inner_products(*_factors(tokens, precision, codebook))


@torch.no_grad()
def likeliest(tokens: Tensor, precision: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of the largest logit, the first one on ties: (N,) int64. Works in tiles, without an N x K table."""
    return largest_product(*_factors(tokens, precision, codebook))


def relaxed_one_hot(logits: Tensor, gumbel: Tensor, temperature: Tensor | float) -> Tensor:
    """Sample the relaxed one-hot categorical distribution (Jang et al. 2017; Maddison et al. 2017): (N, K).

    `gumbel` (N, K) is standard Gumbel noise. In the limit of temperature 0 the result is a one-hot sample of
    softmax(logits).
    """
    return torch.softmax((logits + gumbel) / temperature, dim=1)


def expected_distances(p: Tensor, tokens: Tensor, codebook: Tensor) -> Tensor:
    """Compute sum_k p_k |z - e_k|^2 of each token, for code probabilities `p` (N, K): (N,).

    It is the squared distance to the expected row plus the variance of the rows around it.
    """
    mean = codebook.detach().mean(dim=0)  # shifted for the same reason as in `_factors`
    tokens, codebook = tokens - mean, codebook - mean
    rows = p @ codebook  # (N, D)
    spread = p @ codebook.square().sum(dim=1) - rows.square().sum(dim=1)
    return (tokens - rows).square().sum(dim=1) + spread


def _factors(tokens: Tensor, precision: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return two factors (N, D + P), (K, D + P) whose inner products are the logits: [prec z, prec] and [e, -e^2 / 2].

    -1/2 prec (z - e)^2 = prec z e - prec e^2 / 2 - prec z^2 / 2, and the last term is the same for all codes. Tokens
    and codes are first shifted by the mean of the codebook: differences and gradients stay the same, but the products
    become smaller. The float32 error of a logit is then about 1e-7 prec |z||e|, which matters only if codes are a
    thousand times closer to the token than the codebook is wide.
    """
    mean = codebook.detach().mean(dim=0)
    tokens, codebook = tokens - mean, codebook - mean
    halves = codebook.square() / 2
    if precision.shape[1] == 1:
        halves = halves.sum(dim=1, keepdim=True)
    return torch.cat([precision * tokens, precision], dim=1), torch.cat([codebook, -halves], dim=1)
