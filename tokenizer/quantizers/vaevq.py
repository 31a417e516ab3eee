"""The VAEVQ quantizer (arXiv 2511.06863): variational latents, quantised at their means, and a projected codebook."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.diagonal_gaussian import DiagonalGaussian
from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.projected import ProjectedQuantizer


class VAEVQQuantizer(ProjectedQuantizer):
    """The row nearest to the latent's mean in l2; in training the images are decoded from a sample as well.

    The encoder gives the mean and, clamped to [-30, 20], the log variance of each latent. The table is a learned linear
    map of frozen random rows, from N(0, 1 / D): of "Linear(table), table ~ N(0, D^-1/2)" this is the reading with
    D^-1/2 as the standard deviation, and a map with a bias that alone is learned. With the error of the row in standard
    deviations, eps = (row - mean) / sigma, the losses are `coherence`, the mean of eps^2 / 2 over all channels;
    `kl`, the divergence from N(0, I), summed over an image, mean over the images; and `consistency`, see there.
    The gradient of what the decoder takes goes to the mean and the row as it is, and times eps to sigma.

    sigma is at least e^-15, where eps^2 is up to 1e13 times the squared distance: in float32 it and its gradients are
    finite for distances up to 1e12. A log variance outside the range gets no gradient.

    Args:
        codebook_size: K, the number of codes; at least 2 with the objective `paper`.
        codebook_dim: D, the size of a code.
        objective: `paper`, all three losses; `released`, `coherence` alone, as the public code trains, in which nothing
            but the decoder keeps sigma from growing.
        kl_weight: weight of `kl`.
        consistency_weight: weight of `consistency`.

    Raises:
        ValueError: a single code, whose rows have no covariance, with the objective `paper`.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        objective: Literal["paper", "released"] = "paper",
        kl_weight: float = 1e-6,
        consistency_weight: float = 1e-6,
    ):
        super().__init__(codebook_size, codebook_dim, codebook_dim, bias=True)
        if objective == "paper" and codebook_size < 2:
            raise ValueError(
                f"quantizer 'vaevq' takes the covariance of its codes, got {codebook_size} code; raise "
                "model.codebook_size to 2 or more, or set model.quantizer_options.objective released"
            )
        self.objective = objective
        self.kl_weight = kl_weight
        self.consistency_weight = consistency_weight

    @property
    def encoder_channels(self) -> int:
        """2 D: means, then log variances."""
        return 2 * self.codebook_dim

    def latents(self, encoder_output: Tensor) -> Tensor:
        """The means."""
        return encoder_output[:, : self.codebook_dim]

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        posterior = DiagonalGaussian(encoder_output)
        codebook = self.codebook
        tokens = tokens_of(posterior.mean)
        codes = self.assign(tokens.detach(), codebook.detach())  # (N,)
        rows = maps_of(embedding(codes, codebook), encoder_output)
        errors = (rows - posterior.mean) / posterior.std
        losses = {"coherence": errors.square().mean() / 2}
        if self.objective == "paper":
            losses |= {"kl": posterior.kl().mean(), "consistency": consistency(codebook)}
        towards = posterior.mean + posterior.std * errors.detach() + rows
        sampled = None
        if self.training:
            sampled = posterior.mean + posterior.std * self.noise(encoder_output).normal(posterior.mean)
        quantized, codes = straight_through(rows, towards), grid_of(codes, encoder_output)
        return QuantizerOutput(quantized, codes, losses, self.counts_of(codes), sampled)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """1, and with the objective `paper` the other two weights."""
        others = {"kl": self.kl_weight, "consistency": self.consistency_weight}
        return {"coherence": 1.0} | (others if self.objective == "paper" else {})


def consistency(codebook: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of N(0, I) and the normal distribution fitted to K >= 2 rows: (K, D) -> scalar.

    |mean|^2 + tr S + D - 2 tr S^(1/2), with K - 1 in the denominator of S, whose eigenvalues count for 1e-6 at least in
    the root: a direction in which the rows do not vary, as with K <= D, has a gradient of 0 there and not of infinity.
    """
    mean = codebook.mean(dim=0)
    centred = codebook - mean
    covariance = centred.T @ centred / (len(codebook) - 1)
    # To ask for the eigenvalues of what is not finite is an error; the trace says it as any other loss does.
    decomposable = torch.where(covariance.isfinite().all(), covariance, torch.eye(len(mean)).to(covariance))
    roots = torch.linalg.eigvalsh(decomposable).clamp(min=1e-6).sqrt()
    return mean.square().sum() + covariance.trace() + len(mean) - 2 * roots.sum()
