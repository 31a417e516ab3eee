"""Finite scalar quantization (FSQ, Mentzer et al. 2023, arXiv 2309.15505): each channel is rounded to a few levels."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import Quantizer, QuantizerOutput, grid_of, maps_of, tokens_of

# Keeps the bounded value off the edge between two levels, at which all large latents would lie.
_EPSILON = 1e-3
# Slope of iFSQ's sigmoid.
_SLOPE = 1.6


class FSQQuantizer(Quantizer):
    """Each channel is bounded and rounded to one of L_d values; the product of all levels is the codebook.

        bounded = tanh(z + s) r - o; i = round(bounded); quantized = i / floor(L / 2)
        r = (L - 1) (1 - eps) / 2; for an even L o = 1/2 and s = tan(o / r), else both are 0

    The gradient goes straight through the rounding. There is no table, no loss and no state, so no code can be left
    unused for lack of gradient. The first channel is the lowest digit of a code. Two levels, which the paper does not
    use, have s = 0: with the published s nine of ten latents of N(0, 1) would have the same one.

    Args:
        codebook_size: K, the number of codes, the product of all levels.
        codebook_dim: D, the number of channels.
        levels: L_d of each channel, lowest digit first; None: the prime factors of K, spread over the channels so that
            their levels differ as little as they can. The paper takes at least 5 levels: 8, 6, 5 for 240 codes; 8, 5,
            5, 5 for 1,000; 7, 5, 5, 5, 5 for 4,375; 8, 8, 8, 6, 5 for 15,360; 8, 8, 8, 5, 5, 5 for 64,000.
        bound: `tanh`, as published; or `sigmoid`, iFSQ's (arXiv 2601.17124): 2 sigmoid(1.6 z) - 1 in its place, whose
            values are about uniform for latents of N(0, 1), where those of tanh gather at both ends.

    Raises:
        ValueError: levels of another product than K, of another number than D, or below 1.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        levels: tuple[int, ...] | None = None,
        bound: Literal["tanh", "sigmoid"] = "tanh",
    ):
        super().__init__(codebook_size, codebook_dim)
        given = spread_levels(codebook_size, codebook_dim) if levels is None else list(levels)
        if len(given) != codebook_dim or math.prod(given) != codebook_size:
            raise ValueError(
                f"fsq.levels {given} are {len(given)} channels and {math.prod(given)} codes; set model.codebook_dim "
                "and model.codebook_size to these numbers"
            )
        self.bound = bound
        self._slope = 1.0 if bound == "tanh" else _SLOPE / 2  # 2 sigmoid(x) - 1 = tanh(x / 2)
        count = torch.tensor(given)
        reach = (count - 1).double() * (1 - _EPSILON) / 2
        offset = torch.where(count % 2 == 0, 0.5, 0.0)
        shift = torch.where((count % 2 == 0) & (count > 2), (offset / reach).tan(), 0.0)
        for name, values in (("_reach", reach), ("_offset", offset), ("_shift", shift)):
            self.register_buffer(name, values.float().view(-1, 1, 1), persistent=False)
        self.register_buffer("_levels", count, persistent=False)
        self.register_buffer("_places", torch.tensor([math.prod(given[:d]) for d in range(len(given))]), False)

    @property
    def codebook(self) -> Tensor:
        """All codes' rows (K, D)."""
        return self._rows(torch.arange(self.codebook_size, device=self._levels.device))

    def assign_latents(self, latents: Tensor) -> Tensor:
        return grid_of(self._codes(tokens_of(self._bounded(latents))), latents)

    def embed(self, codes: Tensor) -> Tensor:
        return maps_of(self._rows(codes.flatten()), codes[:, None])

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Map latents to the decoder input, with the gradient of the bounded latents."""
        return self.quantize(latents).quantized

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        bounded = self._bounded(encoder_output)
        codes = grid_of(self._codes(tokens_of(bounded)), encoder_output)
        width = (self._levels // 2).clamp(min=1).view(-1, 1, 1)
        quantized = straight_through(bounded.round() / width, bounded / width)
        return QuantizerOutput(quantized, codes, {}, self.counts_of(codes))

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return no weights: the method has no loss of its own."""
        return {}

    def _bounded(self, latents: Tensor) -> Tensor:
        """Bound latents (B, D, h, w) to values that round to the levels of their channels."""
        return (latents * self._slope + self._shift).tanh() * self._reach - self._offset

    def _codes(self, bounded: Tensor) -> Tensor:
        """Return the codes (N,) int64 of bounded tokens (N, D)."""
        digits = bounded.detach().round().to(torch.int64) + self._levels // 2
        return (digits * self._places).sum(dim=1)

    def _rows(self, codes: Tensor) -> Tensor:
        """Return the rows (N, D) of codes (N,), in [-1, 1]."""
        digits = codes[:, None] // self._places % self._levels
        half = self._levels // 2
        return (digits - half).to(self._reach.dtype) / half.clamp(min=1)


def spread_levels(codes: int, channels: int) -> list[int]:
    """Spread the prime factors of K over the channels, each to the channel that has the fewest levels; most first."""
    levels = [1] * channels
    for prime in sorted(_prime_factors(codes), reverse=True):
        levels[levels.index(min(levels))] *= prime
    return sorted(levels, reverse=True)


def _prime_factors(number: int) -> Iterator[int]:
    """Yield the prime factors of a number, smallest first."""
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            yield divisor
            number //= divisor
        divisor += 1
    if number > 1:
        yield number
