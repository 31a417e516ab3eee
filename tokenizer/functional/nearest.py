"""Nearest-code search in tiles: tokens (N, D), codebook (K, D) -> codes (N,), without an N x K table in memory."""

import torch
from torch import Tensor

from tokenizer.functional.tiles import blocks, concatenate, tile_shape, tiles_of
from tokenizer.functional.vectors import at_least_float32, inner_products, unit_vectors

# Groups of a row whose maxima are compared first, where a maximum is computed faster than its index.
_GROUPS = 16


def most_similar(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of largest cosine similarity to each token (eqs. 8-9): (N, D), (K, D) -> (N,) int64.

    Computed in float32 at least, like the arc loss; ties go to the first code.
    """
    # Normalising the tokens does not change the nearest code, but makes near ties fall as in the arc loss's search.
    return _search(tokens, unit_vectors(at_least_float32(codebook.detach(), tokens)), normalise=True)


def closest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of smallest Euclidean distance to each token: (N, D), (K, D) -> (N,) int64.

    Computed in float32 at least; ties go to the first code.
    """
    # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2): the smallest distance has the largest z e - |e|^2 / 2.
    codebook = at_least_float32(codebook.detach(), tokens)
    return _search(tokens, codebook, -codebook.square().sum(dim=1) / 2)


def largest_product(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Find the code of largest inner product with each token: (N, D), (K, D) -> (N,) int64.

    Computed in float32 at least; ties go to the first code.
    """
    return _search(tokens, codebook)


@torch.no_grad()
def _search(tokens: Tensor, codebook: Tensor, bias: Tensor | None = None, normalise: bool = False) -> Tensor:
    """Find the code of largest tokens @ codebook.T + bias; `bias` (K,); `normalise` takes the tokens' directions."""
    tokens, codebook = at_least_float32(tokens, tokens), at_least_float32(codebook, tokens)
    tile_tokens, tile_codes = tile_shape(tokens, codebook)
    codes = []
    for part in tokens.split(tile_tokens):
        part, best = unit_vectors(part) if normalise else part, None
        for block in blocks(len(codebook), tile_codes):
            tile = inner_products(part, codebook[block], None if bias is None else bias[block])
            best = better(best, tile, block.start)
        codes.append(best[1])
    return concatenate(codes)


def better(best: tuple[Tensor, Tensor] | None, tile: Tensor, first_code: int) -> tuple[Tensor, Tensor]:
    """Merge the `best` scores (n,) and codes (n,) with those of a `tile` (n, k) of codes from `first_code` on."""
    scores, codes = _row_maximum(tile)
    if best is None:
        return scores, codes + first_code if first_code else codes
    new = scores > best[0]
    return torch.where(new, scores, best[0]), torch.where(new, codes + first_code, best[1])


def _row_maximum(tile: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest entry of each row of `tile` (n, k) and its column, the first one on ties: both (n,)."""
    rows, columns = tile.shape
    if columns % _GROUPS or tiles_of(tile.device).few_launches:
        return tile.max(dim=1)
    size = columns // _GROUPS
    grouped = tile.view(rows, _GROUPS, size)
    group = grouped.amax(dim=2).max(dim=1).indices  # (n,), faster than argmax
    values, offset = grouped.gather(1, group.view(-1, 1, 1).expand(-1, 1, size)).squeeze(1).max(dim=1)
    return values, group * size + offset
