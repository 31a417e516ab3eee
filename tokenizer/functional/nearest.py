"""Nearest-code search in tiles: (N, D), (K, D) -> (N,) without an N x K table in memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokenizer.functional.vectors import at_least_float32, inner_products, unit_vectors

# Scores of one tile. On a CPU 2 Mi float32 are 8 MiB, which its caches hold; other devices want few, large kernels.
_TILE_ENTRIES_CPU = 1 << 21
_TILE_ENTRIES = 1 << 24
# Codes of one tile at most: more would leave it too few tokens, among which the closest are then found more slowly.
_TILE_CODES = 512
# Of a row, the best of this many groups is found first, because a maximum is found faster than its place.
_GROUPS = 16


def most_similar(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The code of largest cosine similarity to each token (eqs. 8-9): (N, D), (K, D) -> (N,) int64.

    In float32 at least, like the arc loss; of equal ones the first code.
    """
    # The token's own length decides nothing, but without it near ties fall as they do in the arc loss's search.
    codes = unit_vectors(at_least_float32(codebook.detach(), tokens))
    return _search(tokens, codes, lambda part, codes: inner_products(unit_vectors(part), codes))


def closest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The code of smallest euclidean distance to each token: (N, D), (K, D) -> (N,) int64.

    In float32 at least; of equal ones the first code.
    """
    # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the smallest distance is the largest bracket.
    return _search(tokens, codebook, lambda part, codes: inner_products(part, codes, -codes.square().sum(dim=1) / 2))


def largest_product(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The code of largest inner product with each token: (N, D), (K, D) -> (N,) int64.

    In float32 at least; of equal ones the first code.
    """
    return _search(tokens, codebook, inner_products)


@torch.no_grad()
def _search(tokens: Tensor, codebook: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    tokens, codebook = at_least_float32(tokens, tokens), at_least_float32(codebook, tokens)
    tile_tokens, tile_codes = tile_shape(tokens, codebook)
    found = []
    for part in tokens.split(tile_tokens):
        best = None
        for block in blocks(len(codebook), tile_codes):
            best = better(best, score(part, codebook[block]), block.start)
        found.append(best[1])
    return torch.cat(found)


def better(best: tuple[Tensor, Tensor] | None, tile: Tensor, first_code: int) -> tuple[Tensor, Tensor]:
    """The largest scores (n,) and their codes (n,), of the `best` so far and a `tile` (n, k) from `first_code` on."""
    scores, codes = _row_maximum(tile)
    codes = codes + first_code
    if best is None:
        return scores, codes
    new = scores > best[0]
    return torch.where(new, scores, best[0]), torch.where(new, codes, best[1])


def tile_shape(tokens: Tensor, codebook: Tensor, entries: int | None = None) -> tuple[int, int]:
    """Tokens and codes of a tile of the (N, K) table, of `entries_of_tile` at most."""
    entries = entries_of_tile(tokens, entries)
    codes = max(1, min(len(codebook), _TILE_CODES, entries))
    return entries // codes, codes


def entries_of_tile(tokens: Tensor, entries: int | None = None) -> int:
    """The entries of a tile: those asked for, or what suits the device of the `tokens`."""
    if entries is not None:
        return entries
    return _TILE_ENTRIES_CPU if tokens.device.type == "cpu" else _TILE_ENTRIES


def blocks(length: int, size: int) -> Iterator[slice]:
    """The slices of `size`, the last one shorter, that make up `length`; of nothing, one that is empty."""
    return (slice(start, min(start + size, length)) for start in range(0, max(1, length), size))


def _row_maximum(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Largest entry of each row of `tile` (n, k), and its column, the first of equal ones: both (n,)."""
    rows, columns = tile.shape
    if columns % _GROUPS:
        return tile.max(dim=1)
    size = columns // _GROUPS
    grouped = tile.view(rows, _GROUPS, size)
    group = grouped.amax(dim=2).max(dim=1).indices  # (n,), faster than argmax
    values, place = grouped.gather(1, group.view(-1, 1, 1).expand(-1, 1, size)).squeeze(1).max(dim=1)
    return values, group * size + place
