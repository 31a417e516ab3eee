"""Codes as random variables, q(k | z) ~ exp(-1/2 sum_d prec_d (z_d - e_kd)^2): logits, the likeliest, relaxed samples.

tokens (N, D), precision (N, 1) or (N, D), codebook (K, D) -> logits (N, K). Never N x K x D: one matrix product.
"""

import torch
from torch import Tensor

from tokenizer.functional.nearest import largest_product
from tokenizer.functional.vectors import inner_products


def code_logits(tokens: Tensor, precision: Tensor, codebook: Tensor) -> Tensor:
    """-1/2 sum_d prec_d (z_d - e_kd)^2, less what all codes of a token have in common: (N, K)."""
    return inner_products(*_factors(tokens, precision, codebook))


@torch.no_grad()
def likeliest(tokens: Tensor, precision: Tensor, codebook: Tensor) -> Tensor:
    """The code of the largest logit, the first of equal ones: (N,) int64. In tiles, without an N x K table."""
    return largest_product(*_factors(tokens, precision, codebook))


def relaxed_one_hot(logits: Tensor, gumbel: Tensor, temperature: Tensor | float) -> Tensor:
    """A sample of the relaxed one-hot categorical distribution (Jang et al. 2017; Maddison et al. 2017), (N, K).

    `gumbel` (N, K) is standard Gumbel noise. At temperature 0 it would be the one-hot sample of softmax(logits).
    """
    return torch.softmax((logits + gumbel) / temperature, dim=1)


def expected_distances(p: Tensor, tokens: Tensor, codebook: Tensor) -> Tensor:
    """sum_k p_k |z - e_k|^2 of each token, (N,): the distance of the expected row, and the rows' spread around it.

    `p` (N, K) are the codes' probabilities.
    """
    mean = codebook.detach().mean(dim=0)  # as in `_factors`
    tokens, codebook = tokens - mean, codebook - mean
    rows = p @ codebook  # (N, D)
    spread = p @ codebook.square().sum(dim=1) - rows.square().sum(dim=1)
    return (tokens - rows).square().sum(dim=1) + spread


def _factors(tokens: Tensor, precision: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """What the logits are the inner products of, (N, D + P) and (K, D + P): prec z, prec and e, -e^2 / 2.

    -1/2 prec (z - e)^2 = prec z e - prec e^2 / 2 - prec z^2 / 2, and the last term is the same for all codes. Around
    the codes' mean, a shift that leaves every difference as it is, so are the gradients, but the products are smaller:
    what float32 loses of a logit is of the order of 1e-7 prec |z||e| there, little beside the differences between
    codes unless they are a thousand times closer to the token than the table is wide.
    """
    mean = codebook.detach().mean(dim=0)
    tokens, codebook = tokens - mean, codebook - mean
    halves = codebook.square() / 2
    if precision.shape[1] == 1:
        halves = halves.sum(dim=1, keepdim=True)
    return torch.cat([precision * tokens, precision], dim=1), torch.cat([codebook, -halves], dim=1)
