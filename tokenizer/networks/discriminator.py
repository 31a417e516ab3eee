"""PatchDiscriminator: images (B, C, H, W) -> a logit for each overlapping patch (B, 1, h, w), high for real ones."""

from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn

_SLOPE = 0.2  # of the leaky rectifiers


class PatchDiscriminator(nn.Module):
    """The convolutional patch classifier of pix2pix (Isola et al. 2017), which VQGAN trains against.

    `num_layers` convolutions of stride 2 and one of stride 1 widen the image up to eight times `channels`; a last one
    gives the logits. It computes in float32 whatever the autocast.

    Args:
        in_channels: C, the images' channels.
        channels: width after the first convolution; even.
        num_layers: convolutions of stride 2.
        norm: `group`, group normalisation, with which an image's logits do not depend on the batch it is in, so that
            any split of a batch over processes and accumulation trains alike; `batch`, batch normalisation, as
            published.

    Attributes:
        anchors: (2,), running means of the logits of real and of reconstructed images, for `lecam_penalty`.

    Raises:
        ValueError: a size that cannot work.
    """

    anchors: Tensor

    def __init__(
        self, in_channels: int, channels: int = 64, num_layers: int = 3, norm: Literal["group", "batch"] = "group"
    ):
        super().__init__()
        if channels < 2 or channels % 2 or num_layers < 1:
            raise ValueError(
                f"adversarial.channels must be even and adversarial.layers at least 1, got {channels} and {num_layers}"
            )
        if norm not in ("group", "batch"):
            raise ValueError(f"adversarial.norm is group or batch, got {norm!r}")
        # Two strides of 1 take away one pixel each, and one has to be left.
        self.smallest = 3 << num_layers
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE, True)]
        width = channels
        for index in range(1, num_layers + 1):
            narrower, width = width, channels * min(1 << index, 8)
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(narrower, width, 4, stride=stride, padding=1, bias=False),  # the norm has a bias
                nn.GroupNorm(gcd(32, width // 2), width) if norm == "group" else nn.BatchNorm2d(width),
                nn.LeakyReLU(_SLOPE, True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        self.register_buffer("anchors", torch.zeros(2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError for images that are too small for as many layers."""
        if min(height, width) < self.smallest:
            raise ValueError(
                f"images of {height}x{width} are too small for the discriminator, which takes {self.smallest} pixels; "
                "lower adversarial.layers"
            )

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """Batches of images (B, C, H, W) in [-1, 1] -> of each its logits (B, 1, h, w), float32.

        A batch normalisation takes its statistics of each batch by itself.

        Raises:
            ValueError: the images are too small.
        """
        for images in batches:
            self.check_size(*images.shape[-2:])
        with torch.autocast(batches[0].device.type, enabled=False):
            return [self.layers(images.float()) for images in batches]
