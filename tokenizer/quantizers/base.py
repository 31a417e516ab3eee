"""The contract of a quantizer: latents (B, D, h, w) -> quantized latents, codes, named losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import embedding

from tokenizer.straight_through import AssignedRows
from tokenizer.unit_vectors import at_least_float32
from tokenizer.usage import code_counts, perplexity, usage


@dataclass
class QuantizerOutput(BaseOutput):
    """What a quantizer gives.

    Attributes:
        quantized: (B, D, h, w), the table's rows, with a straight-through gradient to the latents. Not to be changed
            in place: the backward pass reads it.
        codes: (B, h, w) int64 in [0, K).
        losses: named scalars, not weighted; the weights are `Quantizer.loss_weights`.
        counts: (K,) int64, how often each code was used in this batch.
    """

    # All but the first have defaults, as accelerate and diffusers expect of an output.
    quantized: Tensor
    codes: Tensor = None
    losses: dict[str, Tensor] = None
    counts: Tensor = None

    @property
    def usage(self) -> Tensor:
        """Share of the codes used in this batch."""
        return usage(self.counts)

    @property
    def perplexity(self) -> Tensor:
        """Perplexity of the codes in this batch."""
        return perplexity(self.counts)


class Quantizer(nn.Module, ABC):
    """A table of K rows of size D, the rule that assigns a latent to a row, and the losses that train both.

    A subclass sets `codebook` in `__init__` (a parameter, or a property where the table is derived), and defines
    `assign` and `loss_weights`; it extends `assign_with_losses`, `after_update` and `diagnostics` where its method asks
    for it. Everything here is computed in float32 at least, whatever the autocast. `step` counts the completed
    generator updates and is saved.
    """

    codebook: Tensor
    step: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        if codebook_size < 1 or codebook_dim < 1:
            raise ValueError(f"a codebook needs at least one row and one column, got {codebook_size} x {codebook_dim}")
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantizer":
        """Moves to another device or type, but never below float32, as `.half()` of the whole model would ask for."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.is_floating_point() and result.element_size() < 4 else result

        return super()._apply(moved, recurse)

    @abstractmethod
    def assign(self, tokens: Tensor) -> Tensor:
        """The code of each token: (N, D) -> (N,) int64."""

    def assign_with_losses(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The code of each token, (N, D) -> (N,) int64, and the losses that come out of the same pass, by name."""
        return self.assign(tokens.detach()), {}

    @abstractmethod
    def loss_weights(self) -> dict[str, float | Tensor]:
        """The weight of each of the `losses` at the present `step`."""

    def check_tokens(self, tokens: int, processes: int) -> None:
        """Raises ValueError where `tokens` of a batch on each of the processes are too few to train on; none are."""

    def after_update(self) -> None:
        """To be called once after every completed generator update, in training only."""
        self.step += 1

    def diagnostics(self) -> dict[str, Tensor]:
        """Named scalars that tell how the table is doing at the present `step`, for the log."""
        return {}

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> their rows (B, D, h, w)."""
        return rearrange(embedding(codes, self.codebook), "b h w d -> b d h w")

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, D, h, w) -> codes (B, h, w) int64."""
        with torch.autocast(latents.device.type, enabled=False):
            return _grid(self.assign(_tokens(latents)), latents)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Latents (B, D, h, w) -> quantized latents with straight-through gradient, codes, losses, counts."""
        with torch.autocast(latents.device.type, enabled=False):
            tokens = _tokens(latents)  # (N, D) float32
            codes, found = self.assign_with_losses(tokens)  # (N,)
            rows, codebook_loss, commitment_loss = AssignedRows.apply(tokens, self.codebook, codes)
            b, _, h, w = latents.shape
            quantized = rearrange(rows, "(b h w) d -> b d h w", b=b, h=h, w=w)
            return QuantizerOutput(
                quantized=quantized.to(latents.dtype),
                codes=_grid(codes, latents),
                losses={"codebook": codebook_loss, "commitment": commitment_loss, **found},
                counts=code_counts(codes, self.codebook_size),
            )


def _tokens(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B h w, D), float32 at least."""
    return at_least_float32(rearrange(latents, "b d h w -> (b h w) d"), latents)


def _grid(codes: Tensor, latents: Tensor) -> Tensor:
    """(B h w,) -> (B, h, w) of these latents."""
    return rearrange(codes, "(b h w) -> b h w", b=latents.shape[0], h=latents.shape[2], w=latents.shape[3])
