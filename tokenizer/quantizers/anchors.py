"""Tokens of the whole batch that codes are placed at: any of them, the closest, or one drawn by its closeness.

All are to be called by every process, with its share of the tokens; all give the same on each, for any split.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.functional.distributed import all_gather, all_reduce_sum, global_count, is_distributed, take_global
from tokenizer.functional.nearest import closest, entries_of_tile, most_similar
from tokenizer.functional.vectors import at_least_float32, inner_products, unit_vectors

Distance = Literal["cosine", "l2"]


def similarities(tokens: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """How close each token (N, D) is to each code (K, D), (K, N): the cosine, or minus the squared distance."""
    codebook = at_least_float32(codebook, tokens)
    if distance == "cosine":
        return inner_products(unit_vectors(codebook), unit_vectors(tokens))
    squares = codebook.square().sum(dim=1, keepdim=True) + tokens.square().sum(dim=1)
    return 2 * inner_products(codebook, tokens) - squares


@torch.no_grad()
def random_tokens(tokens: Tensor, draws: Tensor, seed: int) -> Tensor:
    """Random tokens (M, D) of the whole batch, by the number of the draw, `draws` (M,) int64.

    No token is drawn twice before each was drawn once; draws of one number are one token.
    """
    total = global_count(tokens)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    return take_global(tokens, order[draws % total])


@torch.no_grad()
def closest_tokens(tokens: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """The token of the whole batch closest to each code, (K, D); of equal ones the first."""
    everyone, share = all_gather(tokens), _share(codebook)
    search = most_similar if distance == "cosine" else closest
    return everyone[_from_all(search(codebook[share], everyone), share, codebook)]


@torch.no_grad()
def sampled_tokens(tokens: Tensor, codebook: Tensor, distance: Distance, seed: int) -> Tensor:
    """For each code a token of the whole batch, (K, D), drawn by the softmax over tokens of its `similarities`."""
    everyone, share = all_gather(tokens), _share(codebook)
    draws = torch.rand(len(codebook), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    draws, part = draws.to(tokens.device)[share], max(1, entries_of_tile(everyone) // len(everyone))
    found = []
    for codes, draw in zip(codebook[share].split(part), draws.split(part), strict=True):
        shares = similarities(everyone, codes, distance).softmax(dim=1, dtype=torch.float64).cumsum(dim=1)
        found.append(torch.searchsorted(shares, draw * shares[:, -1:], right=True).squeeze(1))
    places = torch.cat(found).clamp(max=len(everyone) - 1)
    return everyone[_from_all(places, share, codebook)]


def _share(codebook: Tensor) -> slice:
    """The codes for which this process looks."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    return slice(len(codebook) * rank // world, len(codebook) * (rank + 1) // world)


def _from_all(places: Tensor, share: slice, codebook: Tensor) -> Tensor:
    """The places for all codes, (K,), of which this process has found its share."""
    found = places.new_zeros(len(codebook))
    found[share] = places
    return all_reduce_sum(found)
