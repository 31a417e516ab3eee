"""The ArcVQ quantizer (arXiv 2605.13517): cosine look-up under the spherical angular-margin prior, SAMP."""

from dataclasses import replace
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
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.base import QuantizerOutput, tokens_of
from tokenizer.quantizers.clusters import (
    average_sizes,
    average_sums,
    check_averages,
    check_hits,
    cluster_means,
    revive,
)
from tokenizer.quantizers.cosine import CosineQuantizer
from tokenizer.quantizers.kmeans import kmeans_table
from tokenizer.quantizers.rotation import rotated_through

# `kmeans` is a table of unit vectors until the first update.
ArcInit = Literal["unit", "uniform", "normal", "kmeans"]


class ArcQuantizer(CosineQuantizer):
    """Code of largest cosine, code norms inside a growing ball, arc-cosine additive-margin loss.

        k = argmax_k cos(z, e_k); quantized = z + sg(e_k - z); after each update e <- project_to_ball(e, exp(alpha t))
        losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2 + gamma_t arc_loss(z, sg(e))

    The decoder gets the raw rows, not their directions. Ball and arc loss can be used separately: `ball` none leaves
    the arc loss alone, `arc_initial` 0 leaves the ball alone.

    Four options, which the paper does not have, bring in parts of other methods: `estimator`, `table`, `revive_below`
    and `init` kmeans. They can be combined; each leaves the arc loss as it is, and comes before the ball in an update.

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
        init: initialisation of the table: see `initial_table`; or `kmeans`: unit vectors, which the first update
            replaces by the k-means of its batch's tokens (see `kmeans_table`), clustered by cosine. Without a wait a
            GPU cannot know which update is the first: it computes the k-means in each of them.
        estimator: gradient to the encoder through the look-up: `straight_through`, or `rotation`, as in
            `RotationQuantizer`.
        table: `gradient`, the rows learn from the codebook loss; `moving_average`, the rows are the moving averages of
            their tokens, as in `EMAQuantizer`, and the codebook loss is left out. The averages are not projected into
            the ball, only the table made from them.
        revive_below: replace codes with N_k, the moving average of their tokens per update over all processes, below
            this by random tokens of the batch; 0 disables it. N_k starts at 1.
        average_decay: g of the moving averages of `table` and `revive_below`.

    Attributes:
        cluster_sizes: N_k, (K,); only with `table` moving_average or with `revive_below`.
        cluster_sums: (K, D), moving averages of the tokens' sums; only with `table` moving_average.

    Raises:
        ValueError: an option out of its range, or `legacy_beta` without a codebook loss.
    """

    rates_per_step = ("arc_decay", "ball_growth")

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
        init: ArcInit = "unit",
        estimator: Literal["straight_through", "rotation"] = "straight_through",
        table: Literal["gradient", "moving_average"] = "gradient",
        revive_below: float = 0.0,
        average_decay: float = 0.99,
    ):
        super().__init__(codebook_size, codebook_dim, beta, legacy_beta, "unit" if init == "kmeans" else init)
        check_arc_arguments(scale, margin, top_k)
        check_averages("average_decay", average_decay, revive_below)
        if legacy_beta and table == "moving_average":
            raise ValueError(
                "legacy_beta weighs the codebook loss, which a table of moving averages does not have; set "
                "model.quantizer_options.legacy_beta to false, or table to gradient"
            )
        self.scale = scale
        self.margin = margin
        self.top_k = top_k
        self.arc_initial = arc_initial
        self.arc_decay = arc_decay
        self.ball = ball
        self.ball_growth = ball_growth
        self.gather = gather
        self.first_batch = init == "kmeans"
        self.estimator = estimator
        self.averages_table = table == "moving_average"
        self.revive_below = revive_below
        self.average_decay = average_decay
        if self.averages_table:
            rows = self.codebook.detach()
            del self.codebook  # the parameter
            self.register_buffer("codebook", rows)
            self.register_buffer("cluster_sums", rows.clone())
        if self.averages_table or revive_below:
            self.register_buffer("cluster_sizes", torch.ones(codebook_size))

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

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        output = super().quantize(encoder_output)
        if self.averages_table:
            del output.losses["codebook"]
        if self.estimator == "rotation":
            return replace(output, quantized=rotated_through(encoder_output, output.quantized.detach()))
        return output

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raise ValueError if a batch has fewer tokens than a code has positives, or too few for `revive_below`."""
        check_hits(tokens * processes, self.codebook_size, self.revive_below)
        seen = tokens * processes if self.gather == "global" else tokens
        if self.arc_initial and seen < self.top_k:
            raise ValueError(
                f"a batch of {seen} tokens is fewer than top_k {self.top_k} of the arc loss; raise optim.batch_size, "
                "or lower model.quantizer_options.top_k"
            )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 and beta (see `legacy_beta`), without the 1 for a moving average, and gamma_t for `arc`."""
        weights = super().loss_weights()
        if self.averages_table:
            del weights["codebook"]
        return weights | self.arc_weights()

    def arc_weights(self) -> dict[str, Tensor]:
        """Return gamma_t for `arc`; nothing where the arc loss is not computed."""
        return {"arc": arc_weight(self.step, self.arc_initial, self.arc_decay)} if self.arc_initial else {}

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the ball's radius and the share of codes on its surface; nothing without a ball."""
        return {} if self.ball == "none" else {"ball_radius": self.radius, "share_on_ball": self.share_on_ball}

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Move the rows that follow tokens, count the update, and project the table into the ball of the new radius."""
        if self.first_batch or self.averages_table or self.revive_below:
            latents = self.latents(encoder_output.detach())
            self._follow(tokens_of(at_least_float32(latents, self.codebook)), codes)
        super().after_update(encoder_output, codes)
        if self.ball != "none":
            self.codebook.copy_(project_to_ball(self.codebook, self.radius))

    def _follow(self, tokens: Tensor, codes: Tensor) -> None:
        """Move rows to where the tokens (N, D) of the global batch are: averages, then unused codes, then k-means."""
        if self.averages_table or self.revive_below:
            average_sizes(self.cluster_sizes, self.counts_of(codes), self.average_decay)
        if self.averages_table:
            average_sums(self.cluster_sums, tokens, codes.flatten(), self.average_decay)
        if self.revive_below:
            rows = self.cluster_sums if self.averages_table else self.codebook
            noise = self.update_noise(1)
            revive(rows, self.cluster_sizes, tokens, self.revive_below, noise, are_sums=self.averages_table)
        if self.averages_table:
            self.codebook.copy_(cluster_means(self.cluster_sizes, self.cluster_sums))
        if self.first_batch:
            self._begin_at_means(tokens)

    def _begin_at_means(self, tokens: Tensor) -> None:
        """Replace the table by the k-means of the tokens (N, D) of the global batch, in the first update only."""
        is_first = self.step == 0
        # A CPU has the step at hand. No other device is waited for: it computes the means in vain from then on.
        if is_first.device.type == "cpu" and not is_first:
            return
        means = kmeans_table(tokens, self.codebook_size, self.assign, self.update_noise(1))
        self.codebook.copy_(torch.where(is_first, means, self.codebook))
        if self.averages_table or self.revive_below:
            self.cluster_sizes.masked_fill_(is_first, 1.0)
        if self.averages_table:
            self.cluster_sums.copy_(torch.where(is_first, self.codebook, self.cluster_sums))
