"""Residual quantization (RQ-VAE, Lee et al. 2022, section 3.1): each further code of a token encodes its residual."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput, grid_of, tokens_of
from tokenizer.quantizers.ema import EMAQuantizer
from tokenizer.quantizers.tables import TableInit


class RQQuantizer(EMAQuantizer):
    """`code_depth` codes per token from one table, each for the residual that the codes before it leave.

        r_0 = z; k_d = argmin_k ||r_{d-1} - e_k||; r_d = r_{d-1} - e_{k_d}; quantized = z + sg(sum_d e_{k_d} - z)
        losses: beta mean_d ||r_d||^2, with the rows detached

    The table learns as in `EMAQuantizer`, from the residuals of all depths; the public code updates it once per depth,
    here it is updated once per step.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        code_depth: codes per token. The codes have shape (B, h, w, code_depth), or (B, h, w) for a depth of 1.
        beta: weight of the commitment loss, the only loss.
        decay: decay of the moving averages.
        revive_below: replace codes with fewer uses per update (moving average) by random residuals of the batch; 0
            disables it. As published it is an absolute count: half of the mean count for 32,768 codes per batch and K
            16,384. A batch with fewer than revive_below K codes is refused, because every update would then replace
            codes in use.
        init: initialisation of the table: see `initial_table`.
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
    ):
        super().__init__(codebook_size, codebook_dim, beta, decay, revive_below, init)
        if code_depth < 1:
            raise ValueError(f"code_depth must be at least 1, got {code_depth}")
        self.depth = code_depth

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

    def _grid(self, codes: Tensor, latents: Tensor) -> Tensor:
        """Arrange codes (B h w, depth) as (B, h, w, depth), or (B, h, w) for a depth of 1."""
        return grid_of(codes.squeeze(1) if self.depth == 1 else codes, latents)
