"""The hyperspherical variational autoencoder (Davidson et al. 2018): a continuous reference on the unit sphere."""

from einops import rearrange
from torch import Tensor
from torch.nn.functional import softplus

from tokenizer.functional.von_mises_fisher import kl_to_uniform, sample
from tokenizer.quantizers.base import QuantizerOutput, unit_latents
from tokenizer.quantizers.continuous import ContinuousQuantizer


class HypersphericalVAEQuantizer(ContinuousQuantizer):
    """A von Mises-Fisher posterior of each latent's direction, with an encoded mean and concentration.

        mean = z / ||z||, kappa = softplus(c) + 1; quantized = sample of vMF(mean, kappa) in training, else mean
        losses: kl_weight KL(vMF(mean, kappa) || uniform on the sphere)

    `kl` is summed over an image's tokens and averaged over the images. The latents are the means; a zero vector stays
    zero.

    Args:
        codebook_size: ignored.
        codebook_dim: D, the channels of the latents, at least 2: directions in R^D.
        kl_weight: weight of `kl`; with loss.pixel log_mse, 1 gives the evidence lower bound.

    Raises:
        ValueError: a codebook_dim of 1.
    """

    name = "hyperspherical_vae"

    def __init__(self, codebook_size: int, codebook_dim: int, kl_weight: float = 1.0):
        super().__init__(codebook_size, codebook_dim)
        if codebook_dim < 2:
            raise ValueError(
                f"quantizer {self.name!r} needs a sphere, whose directions vary; set model.codebook_dim to 2 or more, "
                f"got {codebook_dim}"
            )
        self.kl_weight = kl_weight

    @property
    def encoder_channels(self) -> int:
        """D + 1: unnormalised means, then the logit c of the concentration."""
        return self.codebook_dim + 1

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Extract the mean directions."""
        return self.quantize_latents(encoder_output[:, : self.codebook_dim])

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Normalise the latents to length 1."""
        return unit_latents(latents).to(latents.dtype)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        quantized = self.latents(encoder_output)
        concentration = softplus(encoder_output[:, -1:]) + 1
        kl = kl_to_uniform(concentration, self.codebook_dim).sum(dim=(1, 2, 3)).mean()
        if self.training:
            grids = (rearrange(part, "b c h w -> b h w c") for part in (quantized, concentration))
            quantized = rearrange(sample(*grids, self.noise(encoder_output)), "b h w c -> b c h w")
        return QuantizerOutput(quantized, losses={"kl": kl})

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return kl_weight for `kl`."""
        return {"kl": self.kl_weight}
