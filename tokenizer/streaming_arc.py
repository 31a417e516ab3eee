"""The arc loss of each code, streamed over tiles of the similarity: latents (N, D), codebook (K, D) -> terms (K,).

The K x N similarities never exist together. One tile of them serves the search for each token's code, the running top-k
of each code and the running log-sum-exp over its negatives; the backward pass computes the tiles again.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, logsigmoid

from tokenizer.first_order import refuse_second_derivative
from tokenizer.nearest import better, blocks, entries_of_tile, tile_shape
from tokenizer.products import inner_products
from tokenizer.unit_vectors import at_least_float32, directions_and_lengths, unit_vectors

# Tokens whose maximum is taken before the largest ones are sought among the maxima.
_CHUNK = 8
# Below every cosine, yet finite, so that differences from it are numbers.
_BELOW_ALL = -2.0
# Powers are taken of 2, not of e: on many processors PyTorch's exp2 takes a quarter of the time of its exp.
_LN2 = math.log(2)


class ArcTerms(torch.autograd.Function):
    """The loss of each code (eqs. 10-12, 17-18) and, on demand, the code of largest cosine of each token.

    Takes latents (N, D), the codebook (K, D) as a constant, scale, margin, top_k, whether to search, and the entries
    of a tile (None: what suits the device). Gives terms (K,), in float32 at least, and codes (N,) int64 or None.
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
            tile_tokens, tile_codes = tile_shape(latents, codes, entries)
            top_k = min(top_k, len(latents))
            states = [(block, _Codes(codes[block], scale, top_k)) for block in blocks(len(codes), tile_codes)]
            found = []
            for part in blocks(len(latents), tile_tokens):
                directions = unit_vectors(at_least_float32(latents[part], latents))
                best = None
                for block, state in states:
                    tile = inner_products(directions, codes[block])  # (n, k), cos theta
                    if search:
                        best = better(best, tile, block.start)
                    state.update(tile, part.start)
                if search:
                    found.append(best[1])
            positives = torch.cat([state.tokens for _, state in states], dim=1)  # (P, K)
            negatives = torch.cat([state.log2_sum() for _, state in states])  # (K,)
            angles = [
                angle_between(codes[block], unit_vectors(at_least_float32(embedding(tokens, latents), latents)))
                for block, tokens in _pairs(positives, latents, entries)
            ]
            logits = scale * torch.cos(torch.cat(angles, dim=1) + margin)  # (P, K)
            gap = torch.logsumexp(logits, dim=0) - _LN2 * negatives  # (K,), inf where all tokens are positives
        ctx.save_for_backward(latents, codebook, positives, negatives, logits, gap)
        ctx.scale, ctx.margin, ctx.entries = scale, margin, entries
        # log(1 + exp(-gap)): the ratio's -log without the cancellation of log-denominator - log-numerator
        return -logsigmoid(gap), torch.cat(found) if search else None

    @staticmethod
    def backward(ctx: Any, terms_gradient: Tensor, _codes_gradient: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("arc_loss")
        latents, codebook, positives, negatives, logits, gap = ctx.saved_tensors
        with torch.autocast(latents.device.type, enabled=False):
            codes = unit_vectors(at_least_float32(codebook, latents))
            weight = ctx.scale * terms_gradient * torch.sigmoid(-gap)  # (K,), of both sides of the ratio
            gradient = torch.empty_like(latents, dtype=codes.dtype)  # (N, D)
            scaled, weighted = ctx.scale / _LN2 * codes, weight.unsqueeze(1) * codes
            tile_tokens, tile_codes = tile_shape(latents, codes, ctx.entries)
            for part in blocks(len(latents), tile_tokens):
                directions, lengths = directions_and_lengths(at_least_float32(latents[part], latents))
                pull = None
                for block in blocks(len(codes), tile_codes):
                    # Of each token among the negatives of each code, (n, k); the positives are cleared.
                    share = inner_products(directions, scaled[block], -negatives[block]).exp2_()
                    _clear(share, positives[:, block] - part.start)
                    added = inner_products(share, weighted[block].T)  # (n, D)
                    pull = added if pull is None else pull.add_(added)
                # Only what lies along the sphere turns the latent.
                pull -= (pull * directions).sum(dim=1, keepdim=True) * directions
                torch.div(pull, lengths, out=gradient[part])
            weight = weight * logits.softmax(dim=0)  # (P, K)
            for block, tokens in _pairs(positives, latents, ctx.entries):
                moved = _turn(embedding(tokens, latents), codes[block], ctx.margin) * weight[:, block].unsqueeze(-1)
                _add_rows(gradient, tokens.flatten(), moved.flatten(0, 1))
        return gradient.to(latents.dtype), None, None, None, None, None, None


class _Codes:
    """Of a block of codes (k, D): their `top_k` closest tokens so far, and the log-sum-exp over all the others."""

    def __init__(self, codes: Tensor, scale: float, top_k: int):
        self.scale = scale / _LN2  # exp(s x) = exp2(scale x)
        self.cosines = codes.new_full((top_k, len(codes)), -torch.inf)  # falling
        self.tokens = torch.zeros(self.cosines.shape, dtype=torch.int64, device=codes.device)
        self.reference = codes.new_full((len(codes),), _BELOW_ALL * self.scale)  # the largest exponent of a negative
        self.total = codes.new_zeros(len(codes))  # sum of exp2(exponent - reference) over the negatives

    def update(self, tile: Tensor, first_token: int) -> None:
        """Takes in the cosines `tile` (n, k) of the tokens from `first_token` on, and uses up the tile."""
        top_k = len(self.cosines)
        # One more than could be positives: of all that are not, the largest one is then known too.
        cosines, rows = _largest(tile, min(top_k + 1, len(tile)))
        cosines, order = torch.cat([self.cosines, cosines]).topk(top_k + len(rows), dim=0)
        self.tokens = torch.cat([self.tokens, rows + first_token]).gather(0, order[:top_k])
        self.cosines, negatives = cosines[:top_k], cosines[top_k:]
        tile.scatter_(0, rows, negatives)
        reference = torch.maximum(self.reference, self.scale * negatives[0])
        self.total *= torch.exp2(self.reference - reference)
        self.total += torch.add(-reference, tile, alpha=self.scale, out=tile).exp2_().sum(dim=0)
        self.reference = reference

    def log2_sum(self) -> Tensor:
        """log2 of the sum of exp(s cos theta) over the negatives, (k,); -inf where there are none."""
        return self.reference + self.total.log2()


def angle_between(u: Tensor, v: Tensor) -> Tensor:
    """Angle in [0, pi] between unit vectors (..., D), exact at both ends, where acos of a float32 cosine is not."""
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=-1), torch.linalg.vector_norm(u + v, dim=-1))


def _turn(positives: Tensor, codes: Tensor, margin: float) -> Tensor:
    """Gradient of -cos(theta + m) with respect to the positives (P, k, D) of codes (k, D) of length 1 or 0."""
    directions, lengths = directions_and_lengths(at_least_float32(positives, positives))
    # The direction of growing angle is (cos theta) directions - codes. That has lost its digits where the two vectors
    # are almost the same or almost opposite; the chord between the one and what is nearer, the other or its opposite,
    # has not, and is off only along the direction, which is taken away.
    nearer = (directions * codes).sum(dim=-1, keepdim=True) >= 0
    away = torch.where(nearer, directions - codes, -directions - codes)
    away = away - (away * directions).sum(dim=-1, keepdim=True) * directions
    # A zero code is at a right angle to everything, and stays there.
    sine = torch.sin(angle_between(codes, directions) + margin) * (codes != 0).any(dim=-1)
    return sine.unsqueeze(-1) * unit_vectors(away) / lengths


def _add_rows(table: Tensor, places: Tensor, rows: Tensor) -> None:
    """Adds `rows` (n, D) to those of `table` at `places` (n,), in an order that is the same every time."""
    if not len(places):  # of a process whose share of the codes is empty
        return
    places, order = places.sort(stable=True)
    # index_add alone adds in any order on a GPU. So embedding's backward, whose order is fixed, first sums the rows of
    # a place, and of what is left to add all but one row per place are zeros.
    group = torch.cat([places.new_zeros(1), (places[1:] != places[:-1]).long()]).cumsum(dim=0)
    sums = torch.ops.aten.embedding_dense_backward(rows[order], group, len(places), -1, False)
    table.index_add_(0, torch.zeros_like(places).scatter_(0, group, places), sums)


def _pairs(positives: Tensor, vectors: Tensor, entries: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of codes and their positives (P, k), as many as keep (P, k, D) within a tile."""
    size = max(1, entries_of_tile(vectors, entries) // max(1, len(positives) * vectors.shape[1]))
    return ((block, positives[:, block]) for block in blocks(positives.shape[1], size))


def _largest(tile: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest entries of each column of `tile` (n, k), falling, and their rows: both (count, k)."""
    rows, columns = tile.shape
    if rows % _CHUNK or count * _CHUNK >= rows:
        return tile.topk(count, dim=0)
    # They lie in the chunks of the largest maxima, and maxima are found far faster than ranks.
    _, chunks = _largest(tile.view(rows // _CHUNK, _CHUNK, columns).amax(dim=1), count)
    offsets = torch.arange(_CHUNK, device=tile.device).view(1, -1, 1)
    candidates = (chunks.unsqueeze(1) * _CHUNK + offsets).view(-1, columns)  # (count * chunk, k)
    values, order = tile.gather(0, candidates).topk(count, dim=0)
    return values, candidates.gather(0, order)


def _clear(tile: Tensor, rows: Tensor) -> None:
    """Sets entry rows[i, k] of column k of the non-negative `tile` (n, k) to 0; `rows` (P, k) outside it do nothing."""
    inside = (rows >= 0) & (rows < len(tile))
    ceiling = torch.where(inside, 0.0, torch.inf).to(tile.dtype)
    tile.scatter_reduce_(0, rows.clamp(0, len(tile) - 1), ceiling, "amin")
