"""Residual codes (RQ-VAE, Lee et al. 2022, section 3.1): each next code of a token stands for what is left of it."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput, grid_of, tokens_of
from tokenizer.quantizers.ema import EMAQuantizer
from tokenizer.quantizers.tables import TableInit


class RQQuantizer(EMAQuantizer):
    """`code_depth` codes for each token, of one table: k_d is that of the row e nearest to r_{d-1}, r_d = r_{d-1} - e.

    r_0 is the token z. The decoder takes the sum of the rows, straight through. The commitment loss is the mean over d
    of the mean square of z - sg(the sum of the first d rows), which is r_d. The table learns as in `EMAQuantizer`, of
    the residuals of all depths; the published code updates it once for each depth, here it is once for all of them.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        code_depth: codes of a token. The codes are (B, h, w, code_depth), of depth 1 (B, h, w).
        beta: weight of the commitment loss, the only one.
        decay: of the moving averages.
        revive_below: codes of which fewer are hit, in the average update, become random residuals of the batch; 0:
            none. As published, a count: half of the mean at 32,768 codes for K 16,384. A batch with less than K times
            as many is refused, for in each update it would replace codes in use.
        init: how the table is drawn: see `initial_table`.
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
        """Tokens (N, D) -> their codes (N, depth), and r_1, r_2, ..., each (N, D)."""
        codes, left = [], [tokens]
        for _ in range(self.depth):
            codes.append(self.assign(left[-1].detach(), self.codebook))
            left.append(left[-1] - embedding(codes[-1], self.codebook))
        return torch.stack(codes, dim=1), left[1:]

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        codes, left = self.residuals(tokens_of(encoder_output))
        codes = self._grid(codes, encoder_output)
        losses = {"commitment": torch.stack([residual.square().mean() for residual in left]).mean()}
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
        """(B h w, depth) -> (B, h, w, depth), or (B, h, w) of depth 1."""
        return grid_of(codes.squeeze(1) if self.depth == 1 else codes, latents)
