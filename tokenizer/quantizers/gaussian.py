"""Share what quantizers with a normal posterior have in common: the encoder's channels, and the means as latents."""

from torch import Tensor


class GaussianLatents:
    """Latents that are the means of normal posteriors; the encoder gives a mean and a log variance for each.

    Attributes:
        codebook_dim: D, the channels of the latents.
    """

    codebook_dim: int

    @property
    def encoder_channels(self) -> int:
        """2 D: means, then log variances."""
        return 2 * self.codebook_dim

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Extract the means."""
        return encoder_output[:, : self.codebook_dim]
