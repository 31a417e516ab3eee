"""Residual quantization (RQ-VAE, Lee et al. 2022, section 3.1): each further code of a token encodes its residual."""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput, grid_of, tokens_of
from tokenizer.quantizers.ema import EMAQuantizer
from tokenizer.quantizers.tables import TableInit


class RQQuantizer(EMAQuantizer):
    """`code_depth` codes per token from one table, each for the residual that the codes before it leave.

        r_0 = z; k_d = argmin_k ||r_{d-1} - e_k||; r_d = r_{d-1} - e_{k_d}; quantized = z + sg(sum_d e_{k_d} - z)
        losses: beta mean_d ||r_d||^2, with the rows detached

    The table learns as in `EMAQuantizer`, from the residuals of all depths.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        code_depth: codes per token. The codes have shape (B, h, w, code_depth), or (B, h, w) for a depth of 1.
        beta: weight of the commitment loss, the only loss.
        decay: decay of the moving averages.
        revive_below: replace codes with fewer uses per update (moving average) by random residuals of the batch; 0
            disables it. With one update per step a batch with fewer than revive_below K codes is refused, because every
            update would then replace codes in use.
        init: initialisation of the table: see `initial_table`.
        updates: `per_step`, one update of the table with the residuals of all depths; or `per_depth`, one for each
            depth with its own residuals, first depth first, as the public code has it. The published threshold of 1
            counts the uses of one such update. With 8,192 tokens and K 16,384 that is twice the mean: after each update
            all codes without a token in it are replaced. Here all depths are assigned with the table from before the
            step; the public code assigns each with the table that the depth before has updated.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        code_depth: int = 4,
        beta: float = 0.25,
        decay: float = 0.99,
        revive_below: float = 1.0,
        init: TableInit = "uniform",
        updates: Literal["per_step", "per_depth"] = "per_step",
    ):
        super().__init__(codebook_size, codebook_dim, beta, decay, revive_below, init)
        if code_depth < 1:
            raise ValueError(f"code_depth must be at least 1, got {code_depth}")
        self.depth = code_depth
        self.updates = updates

    def residuals(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Quantise tokens (N, D) depth by depth: codes (N, depth), and residuals r_1, r_2, ..., each (N, D)."""
        codes, residuals = [], [tokens]
        for _ in range(self.depth):
            codes.append(self.assign(residuals[-1].detach(), self.codebook))
            residuals.append(residuals[-1] - embedding(codes[-1], self.codebook))
        return torch.stack(codes, dim=1), residuals[1:]

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        codes, residuals = self.residuals(tokens_of(encoder_output))
        codes = self._grid(codes, encoder_output)
        losses = {"commitment": torch.stack([residual.square().mean() for residual in residuals]).mean()}
        return QuantizerOutput(
            straight_through(self.embed(codes), encoder_output), codes, losses, self.counts_of(codes)
        )

    def assign_latents(self, latents: Tensor) -> Tensor:
        return self._grid(self.residuals(tokens_of(latents))[0], latents)

    def embed(self, codes: Tensor) -> Tensor:
        rows = embedding(codes, self.codebook)
        return rearrange(rows if self.depth == 1 else rows.sum(dim=-2), "b h w d -> b d h w")

    def assigned(self, encoder_output: Tensor, codes: Tensor) -> Tensor:
        rows = embedding(codes.reshape(-1, self.depth), self.codebook)  # (N, depth, D)
        before = rows.cumsum(dim=1) - rows
        return (tokens_of(encoder_output)[:, None] - before).flatten(0, 1)

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raise ValueError if a batch has too few codes for `revive_below`; updates per depth take any number."""
        if self.updates == "per_step":
            super().check_batch(tokens, processes)

    def update_table(self, vectors: Tensor, codes: Tensor, noise: ImageNoise | None) -> None:
        """Update averages and table with residuals (N depth, D), once or once per depth."""
        if self.updates == "per_step":
            super().update_table(vectors, codes, noise)
            return
        for depth in range(self.depth):
            super().update_table(vectors[depth :: self.depth], codes[depth :: self.depth], noise)

    def _grid(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Arrange codes (B h w, depth) as (B, h, w, depth), or (B, h, w) for a depth of 1."""
        return grid_of(codes.squeeze(1) if self.depth == 1 else codes, latents)
