"""Choose tokens of the global batch as new positions of codes: random, closest, or sampled by similarity.

Every process must call these functions with its own tokens; all return the same on each process, however the global
batch is split.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.functional.distributed import all_gather, all_reduce_sum, global_count, is_distributed, take_global
from tokenizer.functional.float64 import real_dtype
from tokenizer.functional.nearest import closest, most_similar
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.tiles import entries_of_tile
from tokenizer.functional.vectors import at_least_float32, inner_products, unit_vectors

Distance = Literal["cosine", "l2"]


def similarities(tokens: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """Compute the similarity (K, N) of codes (K, D) and tokens (N, D): the cosine, or minus the squared distance."""
    codebook = at_least_float32(codebook, tokens)
    if distance == "cosine":
        return inner_products(unit_vectors(codebook), unit_vectors(tokens))
    squares = codebook.square().sum(dim=1, keepdim=True) + tokens.square().sum(dim=1)
    return 2 * inner_products(codebook, tokens) - squares


@torch.no_grad()
def random_tokens(tokens: Tensor, draws: Tensor, noise: ImageNoise) -> Tensor:
    """Draw tokens (M, D) of the global batch at random.

    `draws` (M,) int64: draws[i] is draw i's index into a permutation of the global batch, modulo its length; `noise`,
    of one row, gives the permutation. Equal indices draw the same token. No token is drawn twice before every token was
    drawn once.
    """
    total = global_count(tokens)
    order = noise.words(total)[0].argsort()
    return take_global(tokens, order[draws % total])


@torch.no_grad()
def closest_tokens(tokens: Tensor, codebook: Tensor, distance: Distance) -> Tensor:
    """Find each code's closest token of the global batch, (K, D); ties go to the first token."""
    all_tokens, share = all_gather(tokens), _share(codebook)
    search = most_similar if distance == "cosine" else closest
    return all_tokens[_from_all(search(codebook[share], all_tokens), share, codebook)]


@torch.no_grad()
def sampled_tokens(tokens: Tensor, codebook: Tensor, distance: Distance, noise: ImageNoise) -> Tensor:
    """Sample a token of the global batch for each code, (K, D), by the softmax over tokens of `similarities`.

    `noise` has one row.
    """
    all_tokens, share = all_gather(tokens), _share(codebook)
    dtype, part = real_dtype(tokens.device), max(1, entries_of_tile(all_tokens) // len(all_tokens))
    draws = noise.uniform(tokens.new_empty(1, len(codebook), dtype=dtype))[0, share, None]
    chosen = []
    for codes, draw in zip(codebook[share].split(part), draws.split(part), strict=True):
        shares = similarities(all_tokens, codes, distance).softmax(dim=1, dtype=dtype).cumsum(dim=1)
        chosen.append(torch.searchsorted(shares, draw * shares[:, -1:], right=True).squeeze(1))
    indices = torch.cat(chosen).clamp(max=len(all_tokens) - 1)
    return all_tokens[_from_all(indices, share, codebook)]


def _share(codebook: Tensor) -> slice:
    """Return the slice of codes that this process searches for."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    return slice(len(codebook) * rank // world, len(codebook) * (rank + 1) // world)


def _from_all(indices: Tensor, share: slice, codebook: Tensor) -> Tensor:
    """Merge the token indices of every process's share of codes into those of all codes, (K,)."""
    indices_of_all = indices.new_zeros(len(codebook))
    indices_of_all[share] = indices
    return all_reduce_sum(indices_of_all)
