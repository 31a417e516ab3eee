"""The Gaussian variational autoencoder (Kingma and Welling 2014): a continuous reference."""

from torch import Tensor

from tokenizer.functional.diagonal_gaussian import DiagonalGaussian
from tokenizer.quantizers.base import QuantizerOutput
from tokenizer.quantizers.continuous import ContinuousQuantizer
from tokenizer.quantizers.gaussian import GaussianLatents


class VAEQuantizer(GaussianLatents, ContinuousQuantizer):
    """A normal posterior of each latent, with an encoded mean and log variance (clamped to [-30, 20]).

        quantized = mean + sigma noise in training, else mean
        losses: kl_weight KL(N(mean, sigma^2) || N(0, I))

    `kl` is summed over an image and averaged over the images. The latents are the means.

    Args:
        codebook_size: ignored.
        codebook_dim: D, the channels of the latents.
        kl_weight: weight of `kl`; with loss.pixel log_mse, 1 gives the evidence lower bound, other values are the beta
            of a beta-VAE.
    """

    name = "vae"

    def __init__(self, codebook_size: int, codebook_dim: int, kl_weight: float = 1.0):
        super().__init__(codebook_size, codebook_dim)
        self.kl_weight = kl_weight

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Return the latents unchanged."""
        return latents

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        posterior = DiagonalGaussian(encoder_output)
        quantized = posterior.sample(self.noise(encoder_output)) if self.training else posterior.mean
        return QuantizerOutput(quantized, losses={"kl": posterior.kl().mean()})

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return kl_weight for `kl`."""
        return {"kl": self.kl_weight}
