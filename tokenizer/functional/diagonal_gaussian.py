"""The normal distribution with a diagonal covariance that the encoder of a variational autoencoder gives."""

import torch
from torch import Tensor

from tokenizer.functional.noise import ImageNoise


class DiagonalGaussian:
    """N(mean, std^2) for each value of the latents, independent of each other.

    The same formulas, in the same order of operations, as diffusers' `DiagonalGaussianDistribution`, whose module takes
    seconds to import.

    Args:
        encoder_output: (B, 2 D, h, w): the means, then the log variances, which are clamped to [-30, 20].

    Attributes:
        mean, logvar, std, var: (B, D, h, w).
    """

    def __init__(self, encoder_output: Tensor):
        self.mean, logvar = encoder_output.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.exp(0.5 * self.logvar)
        self.var = torch.exp(self.logvar)

    def sample(self, noise: ImageNoise) -> Tensor:
        """Draw a sample, (B, D, h, w), with a gradient to mean and deviation."""
        return self.mean + self.std * noise.normal(self.mean)

    def kl(self) -> Tensor:
        """Return the Kullback-Leibler divergence from N(0, 1), summed over each image: (B,)."""
        return 0.5 * (self.mean.pow(2) + self.var - 1.0 - self.logvar).sum(dim=(1, 2, 3))
