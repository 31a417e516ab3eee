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
from tokenizer.quantizers.cosine import CosineQuantizer
from tokenizer.quantizers.tables import TableInit


class ArcQuantizer(CosineQuantizer):
    """Largest cosine, raw rows out, norms inside a growing ball, an arc-cosine additive-margin loss.

    Each part can be had without the others: `ball` none leaves the arc loss alone, `arc_initial` 0 the ball.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        legacy_beta: puts beta on the codebook term instead, as the public code's VQGAN does.
        scale: s of the arc loss.
        margin: m of the arc loss, in radians.
        top_k: positives per code in the arc loss, over the tokens of the batch.
        arc_initial: gamma_0, weight of the arc loss at step 0; at 0 there is none, and it is not computed.
        arc_decay: lambda, its decay per update: gamma_t = gamma_0 exp(-lambda t).
        ball: `exp`, a radius of exp(ball_growth t); `fixed`, a radius of 1; `none`, no bound.
        ball_growth: alpha, growth per update of the ball's radius.
        gather: what the arc loss's batch is in training, its top-k and its denominator: `global`, the tokens of all
            processes, of which each brings as many, so that W processes with a batch of B / W train as one with B;
            `local`, each process's own, which saves the communication. A call's tokens are all that it knows of: where
            gradients are accumulated in a loop of one's own, the batch is one part of it.
        init: how the table is drawn: see `initial_table`.
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
        """The ball's radius at the present step, a scalar; infinite without a ball."""
        if self.ball == "none":
            return torch.full((), torch.inf, device=self.step.device)
        return ball_radius(self.step, self.ball_growth if self.ball == "exp" else 0.0)

    @property
    def share_on_ball(self) -> Tensor:
        """Share of the codes whose norm is the ball's radius: where it is 0, the bound binds nothing."""
        norms = torch.linalg.vector_norm(self.codebook.detach(), dim=1)
        return (norms >= self.radius * (1 - 1e-6)).double().mean()

    def assign_with_losses(self, tokens: Tensor, codebook: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The code of largest cosine similarity, and `arc`, the arc loss over the batch (see `gather`)."""
        if not self.arc_initial:
            return super().assign_with_losses(tokens, codebook)
        arguments = (codebook, self.scale, self.margin, self.top_k)
        if self.training and self.gather == "global" and is_distributed():
            codes, arc = self.assign(tokens.detach(), codebook), global_arc_loss(tokens, *arguments)
        else:
            arc, codes = arc_loss_and_codes(tokens, *arguments)
        return codes, {"arc": arc}

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raises ValueError where a batch has fewer tokens than each code has positives."""
        seen = tokens * processes if self.gather == "global" else tokens
        if self.arc_initial and seen < self.top_k:
            raise ValueError(
                f"a batch of {seen} tokens is fewer than top_k {self.top_k} of the arc loss; raise optim.batch_size, "
                "or lower model.quantizer_options.top_k"
            )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """1, beta and gamma_t."""
        arc = {"arc": arc_weight(self.step, self.arc_initial, self.arc_decay)} if self.arc_initial else {}
        return super().loss_weights() | arc

    def diagnostics(self) -> dict[str, Tensor]:
        """The ball's radius, and the share of the codes on it; nothing without a ball."""
        return {} if self.ball == "none" else {"ball_radius": self.radius, "share_on_ball": self.share_on_ball}

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Counts the update, then draws the table into the ball of the new radius."""
        super().after_update(encoder_output, codes)
        if self.ball != "none":
            self.codebook.copy_(project_to_ball(self.codebook, self.radius))
