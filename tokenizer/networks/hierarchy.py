"""Between two levels of a hierarchy of latents: latents (B, D, h, w) <-> those above (B, D, h / 2, w / 2)."""

import torch
from torch import Tensor, nn

from tokenizer.functional.distributed import all_reduce_sum, global_count
from tokenizer.networks.conv import ConvDecoder, ConvEncoder, conv_sizes

_VARIANCE_FLOOR = 1e-5


class LevelNetworks(nn.Module):
    """The encoder of a level, in front of which the latents below are normalised, and the decoder back to them.

    Args:
        channels: D, of the latents on both sides.
        hidden_channels: width of the networks.
        residual_channels: inner width of a residual layer.
        num_layers: residual layers.

    Attributes:
        mean, variance: running ones of the latents below, by channel, (D, 1, 1).

    Raises:
        ValueError: a size that cannot work.
    """

    def __init__(self, channels: int, hidden_channels: int, residual_channels: int, num_layers: int):
        super().__init__()
        sizes = conv_sizes(channels, channels, channels, hidden_channels, num_layers, residual_channels, 1)
        self.encoder = ConvEncoder(sizes)
        self.decoder = ConvDecoder(sizes)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("variance", torch.ones(channels, 1, 1))

    def normalised(self, below: Tensor) -> Tensor:
        """Latents below (B, D, h, w), by the running mean and variance, in the networks' precision."""
        return (below.to(self.mean.dtype) - self.mean) / self._scale

    def up(self, below: Tensor) -> Tensor:
        """Latents below (B, D, h, w) -> latents (B, D, h / 2, w / 2)."""
        return self.encoder(self.normalised(below))

    def down(self, rows: Tensor) -> Tensor:
        """Quantised latents (B, D, h / 2, w / 2) -> predicted latents below (B, D, h, w)."""
        return self.decoder(rows.to(self.mean.dtype)) * self._scale + self.mean

    @torch.no_grad()
    def follow(self, below: Tensor, decay: Tensor) -> None:
        """Moves the running mean and variance to those of the latents below (B, D, h, w) of all processes.

        `decay` is the share of what they were. To be called by every process, with as many latents each.
        """
        below = below.to(self.mean.dtype)
        number = global_count(below) * below[0, 0].numel()
        mean = all_reduce_sum(below.sum(dim=(0, 2, 3))[:, None, None]) / number
        variance = all_reduce_sum((below - mean).square().sum(dim=(0, 2, 3))[:, None, None]) / number
        for running, present in ((self.mean, mean), (self.variance, variance)):
            running.copy_(decay * running + (1 - decay) * present)

    @property
    def _scale(self) -> Tensor:
        return (self.variance + _VARIANCE_FLOOR).sqrt()
