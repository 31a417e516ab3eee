"""Encoder and decoder between two levels of latents: (B, D, h, w) <-> (B, D, h / 2, w / 2), for quantizer `hvq`."""

import torch
from torch import Tensor, nn

from tokenizer.functional.distributed import all_reduce_sum, global_count
from tokenizer.networks.conv import ConvDecoder, ConvEncoder, ConvSizes

_VARIANCE_FLOOR = 1e-5


class LevelNetworks(nn.Module):
    """Encode latents to the level above, and decode that level's quantised latents back.

    The encoder sees the latents normalised by their running mean and variance; the decoder's output is scaled back.

    Args:
        channels: D, the channels of the latents on both levels.
        hidden_channels: width of encoder and decoder.
        residual_channels: width inside a residual layer.
        num_layers: residual layers in the encoder, and as many in the decoder.

    Attributes:
        encoder: normalised latents (B, D, h, w) => latents (B, D, h / 2, w / 2).
        decoder: quantised latents (B, D, h / 2, w / 2) => normalised latents (B, D, h, w).
        mean, variance: running mean and variance of each channel of the latents below, (D, 1, 1).

    Raises:
        ValueError: a size that cannot work.
    """

    def __init__(self, channels: int, hidden_channels: int, residual_channels: int, num_layers: int):
        super().__init__()
        sizes = ConvSizes(channels, channels, channels, hidden_channels, residual_channels, num_layers, 1)
        self.encoder = ConvEncoder(sizes)
        self.decoder = ConvDecoder(sizes)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("variance", torch.ones(channels, 1, 1))

    def normalised(self, below: Tensor) -> Tensor:
        """Normalise the latents below (B, D, h, w) by the running mean and variance, in the dtype of the weights."""
        return (below.to(self.mean.dtype) - self.mean) / self._scale

    def up(self, below: Tensor) -> Tensor:
        """Encode the latents below: (B, D, h, w) => latents (B, D, h / 2, w / 2)."""
        return self.encoder(self.normalised(below))

    def down(self, rows: Tensor) -> Tensor:
        """Predict the latents below from quantised latents: (B, D, h / 2, w / 2) => (B, D, h, w)."""
        return self.decoder(rows.to(self.mean.dtype)) * self._scale + self.mean

    @torch.no_grad()
    def follow(self, below: Tensor, decay: Tensor) -> None:
        """Update the running mean and variance: decay * old + (1 - decay) * that of this batch.

        Every process must call this with equally many latents, because the sums are all-reduced.

        Args:
            below: the latents below, (B, D, h, w).
            decay: in [0, 1], a scalar tensor.
        """
        below = below.to(self.mean.dtype)
        number = global_count(below) * below[0, 0].numel()
        mean = all_reduce_sum(below.sum(dim=(0, 2, 3))[:, None, None]) / number
        variance = all_reduce_sum((below - mean).square().sum(dim=(0, 2, 3))[:, None, None]) / number
        for running, present in ((self.mean, mean), (self.variance, variance)):
            running.copy_(decay * running + (1 - decay) * present)

    @property
    def _scale(self) -> Tensor:
        """The running standard deviation, (D, 1, 1)."""
        return (self.variance + _VARIANCE_FLOOR).sqrt()
