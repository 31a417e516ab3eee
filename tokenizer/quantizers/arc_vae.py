"""ArcVQ with the variational latents of VAEVQ (arXiv 2605.13517 and 2511.06863): SAMP on the latents' means."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.diagonal_gaussian import DiagonalGaussian
from tokenizer.quantizers.arc import ArcInit, ArcQuantizer
from tokenizer.quantizers.base import QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.gaussian import GaussianLatents
from tokenizer.quantizers.vaevq import coherent


class ArcVAEQuantizer(GaussianLatents, ArcQuantizer):
    """Code of largest cosine to the latent's mean; in training the images are also decoded from a sample.

        k = argmax_k cos(mean, e_k); eps = (e_k - mean) / sigma; after each update e <- project_to_ball(e, exp(alpha t))
        quantized = e_k, with the gradient of mean + sigma sg(eps) + e_k; sampled = mean + sigma noise
        losses: mean of eps^2 / 2 (coherence) + kl_weight KL(N(mean, sigma^2) || N(0, I))
            + gamma_t arc_loss(mean, sg(e))

    No paper has this combination. From VAEVQ come the posterior, its two decoded images, `coherence` and `kl`; from
    ArcVQ the look-up, the table of learned rows that starts on the unit sphere, the ball, and the arc loss. SAMP takes
    the place of VAEVQ's projected table and of its `consistency`: that loss draws the codes to N(0, I), where their
    lengths are about sqrt(D), against the ball, which holds them below exp(alpha t); the arc loss keeps codes in use.
    `coherence` takes the place of codebook and commitment loss.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        kl_weight: weight of `kl`, which is summed over an image and averaged over the images.
        scale, margin, top_k, arc_initial, arc_decay, ball, ball_growth, gather: as in `ArcQuantizer`, with the means as
            tokens.
        init, revive_below, average_decay: as in `ArcQuantizer`, with the means as tokens.
    """

    decodes = 2

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        kl_weight: float = 1e-6,
        scale: float = 10.0,
        margin: float = 0.1,
        top_k: int = 3,
        arc_initial: float = 1.0,
        arc_decay: float = 5e-4,
        ball: Literal["exp", "fixed", "none"] = "exp",
        ball_growth: float = 3e-4,
        gather: Literal["global", "local"] = "global",
        init: ArcInit = "unit",
        revive_below: float = 0.0,
        average_decay: float = 0.99,
    ):
        super().__init__(
            codebook_size,
            codebook_dim,
            scale=scale,
            margin=margin,
            top_k=top_k,
            arc_initial=arc_initial,
            arc_decay=arc_decay,
            ball=ball,
            ball_growth=ball_growth,
            gather=gather,
            init=init,
            revive_below=revive_below,
            average_decay=average_decay,
        )
        self.kl_weight = kl_weight

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        posterior = DiagonalGaussian(encoder_output)
        codes, arc = self.assign_with_losses(tokens_of(posterior.mean), self.codebook)  # (N,)
        quantized, coherence = coherent(posterior, maps_of(embedding(codes, self.codebook), encoder_output))
        losses = {"coherence": coherence, "kl": posterior.kl().mean(), **arc}
        sampled = posterior.sample(self.noise(encoder_output)) if self.training else None
        codes = grid_of(codes, encoder_output)
        return QuantizerOutput(quantized, codes, losses, self.counts_of(codes), sampled)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 for `coherence`, kl_weight, and gamma_t for `arc`."""
        return {"coherence": 1.0, "kl": self.kl_weight} | self.arc_weights()
