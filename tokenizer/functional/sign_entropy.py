"""Entropies of soft assignments to vectors of signs: each channel of a token is + or - with a probability of its own.

    tokens (N, D) -> logits (N, D) of + against - -> entropy of each token (N,), mean distributions (groups, codes)

Over all 2^D vectors c of {-s, s}^D, q(c | z) ~ exp(-|z - c|^2 / T) is a product of D factors, for |z - c|^2 is a sum
over channels: q(c_d = s | z) = sigmoid(4 s z_d / T). No N x 2^D table is formed.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus


def sign_logits(tokens: Tensor, size: float, temperature: float) -> Tensor:
    """Compute log q(c_d = s | z) - log q(c_d = -s | z) = 4 s z_d / T, with `size` s and `temperature` T: (N, D)."""
    return tokens * (4 * size / temperature)


def token_entropies(logits: Tensor) -> Tensor:
    """Compute the entropy of each token's distribution over all 2^D codes, in nats: logits (N, D) -> (N,).

    It is exact: the entropy of a product is the sum of its factors' entropies.
    """
    size = logits.abs()  # an entropy is the same for both signs, and no term cancels another this way
    return (softplus(-size) + size * torch.sigmoid(-size)).sum(dim=1)


def mean_distributions(logits: Tensor, channels: int) -> Tensor:
    """Compute the mean of the tokens' distributions over the codes of each group of channels.

    The mean of products is no product, so it takes all codes of a group. It is a matrix product of the distributions
    over both halves of the group's channels: memory N 2^(channels / 2) and 2^channels instead of N 2^channels.

    Args:
        logits: (N, D), the log odds of + in each channel.
        channels: most channels of a group. D is spread over as few groups of consecutive channels as there can be; the
            last of them may be shorter.

    Returns:
        (groups, 2^size), each row sums to 1; the lowest bit of a column is the group's first channel. The codes that
        a shorter group lacks have probability 0.
    """
    number = math.ceil(logits.shape[1] / channels)
    size = math.ceil(logits.shape[1] / number)
    # Channels that are + for certain fill the last group: they add no entropy.
    logits = pad(logits, (0, number * size - logits.shape[1]), value=math.inf).unflatten(1, (number, size))
    odds = torch.sigmoid(torch.stack([-logits, logits], dim=-1))  # (N, groups, size, 2)
    low, high = (_products(half) for half in odds.tensor_split([size // 2], dim=2))
    return torch.einsum("ngl,ngh->ghl", low, high).flatten(1) / len(logits)


def entropies(p: Tensor) -> Tensor:
    """Compute the entropy of each distribution, in nats: (..., n) -> (...); 0 log 0 is 0, with a finite gradient."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(dim=-1)


def _products(odds: Tensor) -> Tensor:
    """Multiply the probabilities of independent signs: (N, groups, size, 2) -> of all their codes (N, groups, 2^size).

    The first sign is the lowest bit of a code.
    """
    first, *others = odds.unbind(dim=2) if odds.shape[2] else [odds.new_ones(*odds.shape[:2], 1)]
    for other in others:
        first = (other[..., :, None] * first[..., None, :]).flatten(2)
    return first
