"""The Gaussian variational autoencoder (Kingma and Welling 2014): a continuous reference."""

from torch import Tensor

from tokenizer.functional.diagonal_gaussian import DiagonalGaussian
from tokenizer.quantizers.base import QuantizerOutput
from tokenizer.quantizers.continuous import ContinuousQuantizer


class VAEQuantizer(ContinuousQuantizer):
    """A normal distribution around each latent: the encoder gives its mean and, clamped to [-30, 20], its log variance.

    In training the decoder takes a sample, and `kl` is the divergence from N(0, I), summed over an image, mean over the
    images. Otherwise it takes the mean, which is also the latents.

    Args:
        codebook_size: without meaning here.
        codebook_dim: D, the channels of the latents.
        kl_weight: weight of `kl`; with loss.pixel log_mse, 1 is the evidence lower bound, and another one beta-VAE's
            beta.
    """

    name = "vae"

    def __init__(self, codebook_size: int, codebook_dim: int, kl_weight: float = 1.0):
        super().__init__(codebook_size, codebook_dim)
        self.kl_weight = kl_weight

    @property
    def encoder_channels(self) -> int:
        """2 D: means, then log variances."""
        return 2 * self.codebook_dim

    def latents(self, encoder_output: Tensor) -> Tensor:
        """The means."""
        return encoder_output[:, : self.codebook_dim]

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        posterior = DiagonalGaussian(encoder_output)
        taken = posterior.mean
        if self.training:
            taken = taken + posterior.std * self.noise(encoder_output).normal(taken)
        return QuantizerOutput(taken, losses={"kl": posterior.kl().mean()})

    def loss_weights(self) -> dict[str, float | Tensor]:
        """kl_weight."""
        return {"kl": self.kl_weight}
