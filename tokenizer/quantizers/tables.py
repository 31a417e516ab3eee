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
    """Draw a table (rows, columns).

    `unit`: unit vectors of uniform direction (ArcVQ-VAE, eq. 4); `uniform`: U(-1/K, 1/K), as in the vanilla VQ-VAE;
    `normal`: N(0, 1).
    """
    if init == "uniform":
        return torch.empty(rows, columns).uniform_(-1 / rows, 1 / rows)
    table = torch.randn(rows, columns)
    return unit_vectors(table) if init == "unit" else table


class TableQuantizer(Quantizer):
    """A table of K rows of size D, and a rule that assigns a token to a row.

        k = assign(z, e); quantized = z + sg(e_k - z)
        losses: codebook ||sg(z) - e_k||^2, commitment ||z - sg(e_k)||^2

    A subclass sets `codebook` in `__init__` (with `learn_table`, as a buffer, or as a property if the table is derived)
    and defines `assign` and `loss_weights`.
    """

    def learn_table(self, init: TableInit) -> None:
        """Create the table as a parameter."""
        self.codebook = nn.Parameter(initial_table(init, self.codebook_size, self.codebook_dim))

    @abstractmethod
    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Assign a code to each token: (N, D), (K, D) -> (N,) int64."""

    def assign_with_losses(self, tokens: Tensor, codebook: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Assign a code to each token, (N,) int64, and compute named losses that the same pass gives."""
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
    """Return the weights of codebook and commitment loss: 1 and beta, or with `legacy_beta` beta and 1."""
    codebook, commitment = (beta, 1.0) if legacy_beta else (1.0, beta)
    return {"codebook": codebook, "commitment": commitment}
