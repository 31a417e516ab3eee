"""The patch discriminator of pix2pix: images (B, C, H, W) => one logit per overlapping patch, (B, 1, h, w)."""

from math import gcd
from typing import Literal

from torch import Tensor, nn

from tokenizer.networks.discriminator_contract import Discriminator
from tokenizer.option_checks import check_layers

_SLOPE = 0.2  # of LeakyReLU for negative inputs


class PatchDiscriminator(Discriminator):
    """Classify overlapping patches as real (high logit) or reconstructed (pix2pix, Isola et al. 2017; VQGAN).

    `num_layers` convolutions of stride 2, one of stride 1, and one that outputs the logits. The width doubles with each
    convolution, up to eight times `channels`.

    Args:
        in_channels: C, the channels of the images.
        channels: width after the first convolution; even.
        num_layers: convolutions of stride 2.
        norm: `group`: group normalisation. The logits of an image do not depend on the rest of its batch, so any split
            of a batch over processes or accumulation gives the same training. `batch`: batch normalisation, as
            published.

    Attributes:
        smallest: smallest height and width of an image, in pixels.

    Raises:
        ValueError: a size that cannot work.
    """

    def __init__(
        self, in_channels: int, channels: int = 64, num_layers: int = 3, norm: Literal["group", "batch"] = "group"
    ):
        super().__init__()
        if channels < 2 or channels % 2 or num_layers < 1:
            raise ValueError(
                f"adversarial.channels must be even and adversarial.layers at least 1, got {channels} and {num_layers}"
            )
        check_layers(**{"adversarial.layers": num_layers})
        if norm not in ("group", "batch"):
            raise ValueError(f"adversarial.norm is group or batch, got {norm!r}")
        # The two convolutions of stride 1 remove one row and one column each, and one of each must remain.
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
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images that are smaller than `smallest`."""
        if min(height, width) < self.smallest:
            raise ValueError(
                f"images of {height}x{width} are too small for the discriminator, which takes {self.smallest} pixels; "
                "lower adversarial.layers"
            )

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, 1, h, w) of float32 images (B, C, H, W); batch normalisation is over this batch."""
        return self.layers(images)
