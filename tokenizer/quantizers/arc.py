"""The ArcVQ quantizer (arXiv 2605.13517): cosine look-up under the spherical angular-margin prior, SAMP."""

from typing import Literal

import torch
from torch import Tensor

from tokenizer.angular_margin import (
    arc_loss_and_codes,
    arc_weight,
    ball_radius,
    check_arc_arguments,
    global_arc_loss,
    project_to_ball,
)
from tokenizer.functional.distributed import is_distributed
from tokenizer.functional.float64 import real_dtype
from tokenizer.quantizers.cosine import CosineQuantizer
from tokenizer.quantizers.tables import TableInit


class ArcQuantizer(CosineQuantizer):
    """Code of largest cosine, code norms inside a growing ball, arc-cosine additive-margin loss.

        k = argmax_k cos(z, e_k); quantized = z + sg(e_k - z); after each update e <- project_to_ball(e, exp(alpha t))
        losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2 + gamma_t arc_loss(z, sg(e))

    The decoder gets the raw rows, not their directions. Ball and arc loss can be used separately: `ball` none leaves
    the arc loss alone, `arc_initial` 0 leaves the ball alone.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        legacy_beta: puts beta on the codebook loss instead, as the public code's VQGAN does.
        scale: s of the arc loss.
        margin: m of the arc loss, in radians.
        top_k: positives per code in the arc loss, over the tokens of the batch.
        arc_initial: gamma_0, weight of the arc loss at step 0; at 0 the arc loss is not computed.
        arc_decay: lambda, its decay per update: gamma_t = gamma_0 exp(-lambda t).
        ball: `exp`, a radius of exp(ball_growth t); `fixed`, a radius of 1; `none`, no bound.
        ball_growth: alpha, growth per update of the ball's radius.
        gather: tokens that the arc loss uses in training for its top-k and its denominator: `global`, those of all
            processes (each must bring equally many), so that W processes with a batch of B / W train as one with B;
            `local`, each process's own, which saves communication. Only the tokens of one call count: with gradient
            accumulation in a custom loop, these are one micro-batch.
        init: initialisation of the table: see `initial_table`.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.25,
        legacy_beta: bool = False,
        scale: float = 10.0,
        margin: float = 0.1,
        top_k: int = 3,
        arc_initial: float = 1.0,
        arc_decay: float = 5e-4,
        ball: Literal["exp", "fixed", "none"] = "exp",
        ball_growth: float = 3e-4,
        gather: Literal["global", "local"] = "global",
        init: TableInit = "unit",
    ):
        super().__init__(codebook_size, codebook_dim, beta, legacy_beta, init)
        check_arc_arguments(scale, margin, top_k)
        self.scale = scale
        self.margin = margin
        self.top_k = top_k
        self.arc_initial = arc_initial
        self.arc_decay = arc_decay
        self.ball = ball
        self.ball_growth = ball_growth
        self.gather = gather

    @property
    def radius(self) -> Tensor:
        """Radius of the ball at the current step, a scalar; infinite without a ball."""
        if self.ball == "none":
            return torch.full((), torch.inf, device=self.step.device)
        return ball_radius(self.step, self.ball_growth if self.ball == "exp" else 0.0)

    @property
    def share_on_ball(self) -> Tensor:
        """Share of the codes on the ball's surface; at 0 the bound constrains no code."""
        norms = torch.linalg.vector_norm(self.codebook.detach(), dim=1)
        return (norms >= self.radius * (1 - 1e-6)).to(real_dtype(norms.device)).mean()

    def assign_with_losses(self, tokens: Tensor, codebook: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Assign each token to the code of largest cosine, and compute `arc`, the arc loss (see `gather`)."""
        if not self.arc_initial:
            return super().assign_with_losses(tokens, codebook)
        arguments = (codebook, self.scale, self.margin, self.top_k)
        if self.training and self.gather == "global" and is_distributed():
            codes, arc = self.assign(tokens.detach(), codebook), global_arc_loss(tokens, *arguments)
        else:
            arc, codes = arc_loss_and_codes(tokens, *arguments)
        return codes, {"arc": arc}

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raise ValueError if a batch has fewer tokens than the positives of a code."""
        seen = tokens * processes if self.gather == "global" else tokens
        if self.arc_initial and seen < self.top_k:
            raise ValueError(
                f"a batch of {seen} tokens is fewer than top_k {self.top_k} of the arc loss; raise optim.batch_size, "
                "or lower model.quantizer_options.top_k"
            )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 and beta (see `legacy_beta`), and gamma_t for `arc`."""
        arc = {"arc": arc_weight(self.step, self.arc_initial, self.arc_decay)} if self.arc_initial else {}
        return super().loss_weights() | arc

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the ball's radius and the share of codes on its surface; nothing without a ball."""
        return {} if self.ball == "none" else {"ball_radius": self.radius, "share_on_ball": self.share_on_ball}

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Count the update, then project the table into the ball of the new radius."""
        super().after_update(encoder_output, codes)
        if self.ball != "none":
            self.codebook.copy_(project_to_ball(self.codebook, self.radius))
