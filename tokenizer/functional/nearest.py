"""Nearest-code search in tiles: tokens (N, D), codebook (K, D) -> codes (N,), without an N x K table in memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokenizer.functional.vectors import at_least_float32, inner_products, unit_vectors

# Scores of one tile. On a CPU 2 Mi float32 are 8 MiB and fit into its caches; other devices want few, large kernels.
_TILE_ENTRIES_CPU = 1 << 21
_TILE_ENTRIES = 1 << 24
# Most codes of one tile. With more, a tile has few tokens, and the search becomes slower.
_TILE_CODES = 512
# Groups of a row whose maxima are compared first, because a maximum is computed faster than its index.
_GROUPS = 16


def most_similar(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of largest cosine similarity to each token (eqs. 8-9): (N, D), (K, D) -> (N,) int64.

    Computed in float32 at least, like the arc loss; ties go to the first code.
    """
    # Normalising the tokens does not change the nearest code, but makes near ties fall as in the arc loss's search.
    codes = unit_vectors(at_least_float32(codebook.detach(), tokens))
    return _search(tokens, codes, lambda part, codes: inner_products(unit_vectors(part), codes))


def closest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of smallest Euclidean distance to each token: (N, D), (K, D) -> (N,) int64.

    Computed in float32 at least; ties go to the first code.
    """
    # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the smallest distance has the largest z e - |e|^2 / 2.
    return _search(tokens, codebook, lambda part, codes: inner_products(part, codes, -codes.square().sum(dim=1) / 2))


def largest_product(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of largest inner product with each token: (N, D), (K, D) -> (N,) int64.

    Computed in float32 at least; ties go to the first code.
    """
    return _search(tokens, codebook, inner_products)


@torch.no_grad()
def _search(tokens: Tensor, codebook: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    tokens, codebook = at_least_float32(tokens, tokens), at_least_float32(codebook, tokens)
    tile_tokens, tile_codes = tile_shape(tokens, codebook)
    codes = []
    for part in tokens.split(tile_tokens):
        best = None
        for block in blocks(len(codebook), tile_codes):
            best = better(best, score(part, codebook[block]), block.start)
        codes.append(best[1])
    return torch.cat(codes)


def better(best: tuple[Tensor, Tensor] | None, tile: Tensor, first_code: int) -> tuple[Tensor, Tensor]:
    """Merge the `best` scores (n,) and codes (n,) with those of a `tile` (n, k) of codes from `first_code` on."""
    scores, codes = _row_maximum(tile)
    codes = codes + first_code
    if best is None:
        return scores, codes
    new = scores > best[0]
    return torch.where(new, scores, best[0]), torch.where(new, codes, best[1])


def tile_shape(tokens: Tensor, codebook: Tensor, entries: int | None = None) -> tuple[int, int]:
    """Choose the tokens and codes of one tile of the (N, K) table, with at most `entries_of_tile` entries."""
    entries = entries_of_tile(tokens, entries)
    codes = max(1, min(len(codebook), _TILE_CODES, entries))
    return entries // codes, codes


def entries_of_tile(tokens: Tensor, entries: int | None = None) -> int:
    """Return `entries`, or the default number of entries of a tile for the device of `tokens` if it is None."""
    if entries is not None:
        return entries
    return _TILE_ENTRIES_CPU if tokens.device.type == "cpu" else _TILE_ENTRIES


def blocks(length: int, size: int) -> Iterator[slice]:
    """Yield the slices of `size` that cover `length`, the last one possibly shorter; one empty slice for length 0."""
    return (slice(start, min(start + size, length)) for start in range(0, max(1, length), size))


def _row_maximum(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest entry of each row of `tile` (n, k) and its column, the first one on ties: both (n,)."""
    rows, columns = tile.shape
    if columns % _GROUPS:
        return tile.max(dim=1)
    size = columns // _GROUPS
    grouped = tile.view(rows, _GROUPS, size)
    group = grouped.amax(dim=2).max(dim=1).indices  # (n,), faster than argmax
    values, offset = grouped.gather(1, group.view(-1, 1, 1).expand(-1, 1, size)).squeeze(1).max(dim=1)
    return values, group * size + offset
