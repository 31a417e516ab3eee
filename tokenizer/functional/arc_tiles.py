"""Arc loss of each code, computed tile by tile: latents (N, D), codebook (K, D) -> terms (K,).

The K x N table of similarities never exists as a whole. Each tile is reduced to two numbers per code and chunk of
tokens: the largest cosine, and the sum of exponentials relative to it. The closest tokens of a code lie in the chunks
with the largest cosines, so only these chunks are computed again; all other chunks count as negatives as a whole. The
backward pass recomputes the tiles from the stored unit vectors of the latents.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, logsigmoid, pad

from tokenizer.functional.nearest import better
from tokenizer.functional.row_sums import sum_rows
from tokenizer.functional.tiles import blocks, concatenate, entries_of_tile, tile_shape, tiles_of
from tokenizer.functional.vectors import (
    at_least_float32,
    directions_and_lengths,
    inner_products,
    refuse_second_derivative,
    unit_vectors,
)

# Cost of recomputing one cosine, in entries of the table of chunks.
_CANDIDATE_COST = 16
# Size of the groups of rows whose maxima are compared first when searching the largest entries.
_GROUP = 16
# Below every cosine but finite, so that differences from it are finite too.
_BELOW_ALL = -2.0
# Exponentials are computed with base 2: on an AMD CPU, PyTorch's exp takes three to four times as long as its exp2.
_LN2 = math.log(2)


class ArcLossFunction(torch.autograd.Function):
    """The arc loss of each code (eqs. 10-12, 17-18) and, on request, each token's code of largest cosine.

    Inputs: latents (N, D), codebook (K, D) as a constant, scale, margin, top_k, whether to search for codes, and the
    entries of a tile (None: the default of the device). Outputs: terms (K,), in float32 at least, and codes (N,) int64
    or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        latents: Tensor,
        codebook: Tensor,
        scale: float,
        margin: float,
        top_k: int,
        search: bool,
        entries: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(latents.device.type, enabled=False):
            codes = unit_vectors(at_least_float32(codebook, latents))
            top_k = min(top_k, len(latents))
            chunk, part_size, block_size = _tiling(latents, codes, top_k, entries)
            parts = list(blocks(len(latents), part_size))
            directions, lengths = _normalise(latents, parts)
            positives, negatives, best = [], [], [None] * len(parts)
            for block in blocks(len(codes), block_size):
                chunks = _Chunks(codes[block], scale / _LN2, len(latents), chunk)
                for index, part in enumerate(parts):
                    tile = inner_products(directions[part], codes[block])  # (n, k), cos theta
                    if search:
                        best[index] = better(best[index], tile, block.start)
                    chunks.take(tile, part.start)
                    del tile  # frees it before the next one is allocated: two do not fit into the processor's cache
                tokens, others = chunks.split(directions, top_k, entries)
                positives.append(tokens)
                negatives.append(others)
            positives = concatenate(positives, dim=1)  # (P, K)
            negatives = concatenate(negatives)  # (K,)
            angles = [
                angle_between(codes[block], embedding(tokens, directions))
                for block, tokens in _pairs(positives, directions, entries)
            ]
            angles = concatenate(angles, dim=1) + margin  # (P, K), theta + m
            logits = scale * torch.cos(angles)
            gap = torch.logsumexp(logits, dim=0) - _LN2 * negatives  # (K,), inf where all tokens are positives
        ctx.save_for_backward(directions, lengths, codes, positives, negatives, angles, logits, gap)
        ctx.scale, ctx.entries, ctx.dtype = scale, entries, latents.dtype
        # log(1 + exp(-gap)) is -log of the ratio, without cancellation between log-denominator and log-numerator.
        return -logsigmoid(gap), concatenate([part_codes for _, part_codes in best]) if search else None

    @staticmethod
    def backward(ctx: Any, terms_gradient: Tensor, _codes_gradient: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("arc_loss")
        directions, lengths, codes, positives, negatives, angles, logits, gap = ctx.saved_tensors
        with torch.autocast(directions.device.type, enabled=False):
            weight = ctx.scale * terms_gradient * torch.sigmoid(-gap)  # (K,), for positives and negatives alike
            gradient = torch.empty_like(directions)  # (N, D)
            scaled, weighted = ctx.scale / _LN2 * codes, weight.unsqueeze(1) * codes
            tile_tokens, tile_codes = tile_shape(directions, codes, ctx.entries)
            for part in blocks(len(directions), tile_tokens):
                pull = None
                for block in blocks(len(codes), tile_codes):
                    # Softmax share of each token among the negatives of each code, (n, k); positives are set to 0.
                    share = inner_products(directions[part], scaled[block], -negatives[block]).exp2_()
                    if len(share) == len(directions):
                        share.scatter_(0, positives[:, block], 0)
                    else:
                        _clear(share, positives[:, block] - part.start)
                    added = inner_products(share, weighted[block].T)  # (n, D)
                    pull = added if pull is None else pull.add_(added)
                    del share  # for the same reason as the tile in forward
                # Keep the component tangent to the sphere: the radial one does not change the direction.
                pull -= (pull * directions[part]).sum(dim=1, keepdim=True) * directions[part]
                torch.div(pull, lengths[part], out=gradient[part])
            weight = weight * logits.softmax(dim=0)  # (P, K)
            for block, tokens in _pairs(positives, directions, ctx.entries):
                turn = _turn(embedding(tokens, directions), codes[block], angles[:, block])
                moved = turn * (weight[:, block].unsqueeze(-1) / embedding(tokens, lengths))
                _add_rows(gradient, tokens.flatten(), moved.flatten(0, 1))
        return gradient.to(ctx.dtype), None, None, None, None, None, None


class _Chunks:
    """For a block of codes (k, D): the largest cosine and the sum of exponentials of every chunk of tokens."""

    def __init__(self, codes: Tensor, scale: float, tokens: int, chunk: int):
        self.codes = codes
        self.scale = scale  # for powers of 2
        self.tokens = tokens
        self.chunk = chunk
        self.largest = codes.new_empty(-(-tokens // chunk), len(codes))  # (N / chunk, k)
        # Sums of exp2(scale (cos theta - largest)), between 1 and the size of a chunk.
        self.sums = torch.empty_like(self.largest)

    def take(self, tile: Tensor, first_token: int) -> None:
        """Add the cosines `tile` (n, k) of the tokens from `first_token` on; overwrites the tile."""
        tile = _whole(tile, self.chunk)
        tile = tile.unflatten(0, (len(tile) // self.chunk, self.chunk))
        rows = slice(first_token // self.chunk, first_token // self.chunk + len(tile))
        largest = torch.amax(tile, dim=1, out=self.largest[rows])
        torch.add((-self.scale * largest).unsqueeze(1), tile, alpha=self.scale, out=tile)
        torch.sum(tile.exp2_(), dim=1, out=self.sums[rows])

    def split(self, directions: Tensor, top_k: int, entries: int | None) -> tuple[Tensor, Tensor]:
        """Split the tokens into positives and negatives; overwrites the tables.

        Returns:
            The `top_k` closest tokens of each code (top_k, k), and log2 of the sum of exp(s cos theta) over all other
            tokens (k,), -inf if there are none.
        """
        chunks = _largest(self.largest, min(top_k, len(self.largest)))
        candidates = _rows_of(chunks, self.chunk)
        is_whole = self.tokens % self.chunk == 0
        inside = candidates if is_whole else candidates.clamp(max=self.tokens - 1)
        cosines = [
            (embedding(tokens, directions) * self.codes[block]).sum(dim=-1)
            for block, tokens in _pairs(inside, directions, entries)
        ]
        cosines = concatenate(cosines, dim=1)
        if not is_whole:
            cosines.masked_fill_(candidates >= self.tokens, -torch.inf)
        positives = cosines.topk(top_k, dim=0).indices
        # Remove the positives and the recomputed chunks; the rest are the negatives.
        cosines.scatter_(0, positives, -torch.inf)
        self.largest.scatter_(0, chunks, -torch.inf)
        reference = torch.maximum(self.largest.amax(dim=0), cosines.amax(dim=0)).clamp(min=_BELOW_ALL)
        total = self.largest.sub_(reference).mul_(self.scale).exp2_().mul_(self.sums).sum(dim=0)
        total += cosines.sub_(reference).mul_(self.scale).exp2_().sum(dim=0)
        return candidates.gather(0, positives), self.scale * reference + total.log2()


def _tiling(tokens: Tensor, codes: Tensor, top_k: int, entries: int | None) -> tuple[int, int, int]:
    """Choose the number of tokens of a chunk, tokens of a part (whole chunks), and codes of a block.

    The tile of a part and a block has at most `entries` entries; so has the table of all chunks and a block, except
    that a block never has less than one code. That table costs about as much as recomputing the closest chunks.
    """
    entries = entries_of_tile(tokens, entries)
    chunk = 1
    while 2 * chunk <= entries and _CANDIDATE_COST * top_k * (2 * chunk) ** 2 <= len(tokens):
        chunk *= 2
    chunks = -(-len(tokens) // chunk)
    block_size = max(1, min(tile_shape(tokens, codes, entries)[1], entries // max(chunk, chunks)))
    part_size = entries // block_size
    return chunk, part_size - part_size % chunk, block_size


def _normalise(latents: Tensor, parts: list[slice]) -> tuple[Tensor, Tensor]:
    """Apply `directions_and_lengths` to latents (N, D) in float32 at least, part by part."""
    if len(parts) == 1:
        return directions_and_lengths(at_least_float32(latents, latents).contiguous())
    directions = latents.new_empty(latents.shape, dtype=torch.promote_types(latents.dtype, torch.float32))
    lengths = directions.new_empty(len(latents), 1)
    for part in parts:
        directions[part], lengths[part] = directions_and_lengths(at_least_float32(latents[part], latents).contiguous())
    return directions, lengths


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """Compute the angle in [0, pi] between unit vectors (..., D); unlike acos of a cosine, exact at both ends."""
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))


def _turn(positives: Tensor, codes: Tensor, angles: Tensor) -> Tensor:
    """Compute the gradient of -cos(theta + m) along the sphere: positives (P, k, D), codes (k, D) -> (P, k, D).

    `angles` (P, k) are theta + m.

    Its length is |sin(theta + m)|, and 0 for a zero code.
    """
    # The angle grows along (cos theta) positives - codes, which cancels numerically where the two vectors are almost
    # equal or almost opposite. The chord from the code (or, if nearer, from its opposite) to the positive does not
    # cancel; it differs from that vector only along the positive itself, and this component is removed.
    nearer = (positives * codes).sum(dim=-1, keepdim=True) >= 0
    away = torch.where(nearer, positives - codes, -positives - codes)
    away = away - (away * positives).sum(dim=-1, keepdim=True) * positives
    # A zero code is orthogonal to everything and has no gradient.
    sine = torch.sin(angles) * (codes != 0).any(dim=-1)
    return sine.unsqueeze(-1) * unit_vectors(away)


def _add_rows(table: Tensor, places: Tensor, rows: Tensor) -> None:
    """Add `rows` (n, D) to the rows `places` (n,) of `table`, in a deterministic order."""
    if not len(places):  # the process has no codes: fewer codes than processes
        return
    if tiles_of(table.device).few_launches:
        table += sum_rows(rows, places, len(table))
        return
    # Adding one sum per place, and zeros, is less work than adding a second table.
    places, order = places.sort(stable=True)
    group = torch.cat([places.new_zeros(1), (places[1:] != places[:-1]).long()]).cumsum(dim=0)
    sums = sum_rows(rows[order], group, len(places))
    table.index_add_(0, torch.zeros_like(places).scatter_(0, group, places), sums)


def _pairs(tokens: Tensor, vectors: Tensor, entries: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of codes and their tokens (P, k) out of `tokens` (P, K), such that (P, k, D) fits into a tile."""
    size = max(1, entries_of_tile(vectors, entries) // max(1, len(tokens) * vectors.shape[1]))
    return ((block, tokens[:, block]) for block in blocks(tokens.shape[1], size))


def _largest(table: Tensor, count: int) -> Tensor:
    """Find the rows of the `count` largest entries of each column of `table` (n, k): (count, k)."""
    if count * _GROUP >= len(table) or tiles_of(table.device).few_launches:
        return table.topk(count, dim=0).indices
    # They lie in the groups with the largest maxima, and computing maxima is much faster than ranking.
    table = _whole(table, _GROUP)
    groups = _largest(table.unflatten(0, (len(table) // _GROUP, _GROUP)).amax(dim=1), count)
    candidates = _rows_of(groups, _GROUP)
    return candidates.gather(0, table.gather(0, candidates).topk(count, dim=0).indices)


def _whole(table: Tensor, size: int) -> Tensor:
    """Pad `table` (n, k) with rows of -inf until n is a multiple of `size`."""
    missing = -len(table) % size
    return pad(table, (0, 0, 0, missing), value=-torch.inf) if missing else table


def _rows_of(groups: Tensor, size: int) -> Tensor:
    """List the rows that make up the groups (c, k) of `size` rows each: (c * size, k)."""
    offsets = torch.arange(size, device=groups.device).view(1, -1, 1)
    return (groups.unsqueeze(1) * size + offsets).flatten(0, 1)


def _clear(tile: Tensor, rows: Tensor) -> None:
    """Set entries rows[i, k] of column k of the non-negative `tile` (n, k) to 0; ignore `rows` (P, k) outside it."""
    inside = rows.clamp(0, len(tile) - 1)
    ceiling = torch.zeros_like(rows, dtype=tile.dtype).masked_fill_(inside != rows, torch.inf)
    tile.scatter_reduce_(0, inside, ceiling, "amin")
