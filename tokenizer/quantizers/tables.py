"""Quantizers with one table: a token is assigned to a row, which goes to the decoder straight through."""

from abc import abstractmethod
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import embedding

from tokenizer.functional.straight_through import CodebookLookup
from tokenizer.functional.vectors import unit_vectors
from tokenizer.quantizers.base import Quantizer, QuantizerOutput, grid_of, maps_of, tokens_of

TableInit = Literal["unit", "uniform", "normal"]


def initial_table(init: TableInit, rows: int, columns: int) -> Tensor:
    """A table (rows, columns), drawn.

    `unit`: directions, of length 1 (ArcVQ-VAE, eq. 4); `uniform`: from U(-1/K, 1/K), as the vanilla VQ-VAE's;
    `normal`: from N(0, 1).
    """
    if init == "uniform":
        return torch.empty(rows, columns).uniform_(-1 / rows, 1 / rows)
    table = torch.randn(rows, columns)
    return unit_vectors(table) if init == "unit" else table


class TableQuantizer(Quantizer):
    """A table of K rows of size D, and the rule that assigns a token to a row.

    A subclass sets `codebook` in `__init__` (`learn_table`, a buffer, or a property where the table is derived) and
    defines `assign` and `loss_weights`.
    """

    def learn_table(self, init: TableInit) -> None:
        """Makes the table a parameter."""
        self.codebook = nn.Parameter(initial_table(init, self.codebook_size, self.codebook_dim))

    @abstractmethod
    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """The code of each token: (N, D), (K, D) -> (N,) int64."""

    def assign_with_losses(self, tokens: Tensor, codebook: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The code of each token, (N,) int64, and the losses that come out of the same pass, by name."""
        return self.assign(tokens.detach(), codebook.detach()), {}

    def assign_latents(self, latents: Tensor) -> Tensor:
        return grid_of(self.assign(tokens_of(latents), self.codebook), latents)

    def embed(self, codes: Tensor) -> Tensor:
        return rearrange(embedding(codes, self.codebook), "b h w d -> b d h w")

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        tokens, codebook = tokens_of(encoder_output), self.codebook  # (N, D), (K, D)
        codes, other_losses = self.assign_with_losses(tokens, codebook)  # (N,)
        rows, codebook_loss, commitment_loss = CodebookLookup.apply(tokens, codebook, codes)
        losses = {"codebook": codebook_loss, "commitment": commitment_loss, **other_losses}
        return QuantizerOutput(
            maps_of(rows, encoder_output), grid_of(codes, encoder_output), losses, self.counts_of(codes)
        )


def codebook_weights(beta: float, legacy_beta: bool) -> dict[str, float]:
    """The weights of codebook and commitment loss: beta is on the latter, or, `legacy_beta`, on the former."""
    codebook, commitment = (beta, 1.0) if legacy_beta else (1.0, beta)
    return {"codebook": codebook, "commitment": commitment}
