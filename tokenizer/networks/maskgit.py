"""The network of MaskGIT's tokenizer (Chang et al. 2022, arXiv 2202.04200): VQGAN with convolutions alone.

No attention, so that a tokenizer takes images of any size; average pooling on the way down, nearest neighbours on the
way up, and no bias in the convolutions of the blocks. SeQ-GAN (arXiv 2212.03185) has the same network.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from tokenizer.networks.base import Decoder, Encoder, Network, NetworkSizes
from tokenizer.option_checks import check_layers

_GROUPS = 32
_EPSILON = 1e-6


@dataclass(frozen=True)
class MaskGITSizes:
    """The sizes of the encoder and the decoder.

    Attributes:
        channels: C, the channels of the images.
        encoder_channels: channels of the encoder's output.
        decoder_channels: channels of the decoder's input.
        widths: width of each level, from the highest resolution to the lowest.
        num_layers: residual blocks of each level, and of the middle.
    """

    channels: int
    encoder_channels: int
    decoder_channels: int
    widths: tuple[int, ...]
    num_layers: int


class Block(nn.Module):
    """Two convolutions h of normalised features x: x + h where the width stays, else h + W h with a 1 x 1 matrix W.

    The second form is that of the public code, whose shortcut starts at the block's own output.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, channels, _EPSILON)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, width, _EPSILON)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None if channels == width else nn.Conv2d(width, width, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, channels, h, w) to (B, width, h, w)."""
        hidden = self.conv1(silu(self.norm1(features)))
        hidden = self.conv2(silu(self.norm2(hidden)))
        return hidden + (features if self.shortcut is None else self.shortcut(hidden))


class Blocks(nn.Module):
    """Residual blocks one after the other.

    Attributes:
        gradient_checkpointing: whether the backward pass recomputes each block; diffusers' switch.
    """

    def __init__(self, channels: int, width: int, count: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width if index else channels, width) for index in range(count))
        self.gradient_checkpointing = False

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, channels, h, w) to (B, width, h, w)."""
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                features = self._gradient_checkpointing_func(block, features)
            else:
                features = block(features)
        return features


class MaskGITEncoder(Encoder):
    """Images (B, C, H, W) in [-1, 1] => encoder output (B, encoder_channels, H / f, W / f)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: MaskGITSizes):
        super().__init__()
        widths = sizes.widths
        self.downsampling = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(sizes.channels, widths[0], 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            Blocks(before, width, sizes.num_layers)
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.middle = Blocks(widths[-1], widths[-1], sizes.num_layers)
        self.norm_out = nn.GroupNorm(_GROUPS, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], sizes.encoder_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, C, H, W) => (B, encoder_channels, H / f, W / f)."""
        features = self.levels[0](self.conv_in(images))
        for level in self.levels[1:]:
            features = level(avg_pool2d(features, 2))
        return self.conv_out(silu(self.norm_out(self.middle(features))))


class MaskGITDecoder(Decoder):
    """Quantised latents (B, decoder_channels, h, w) => images (B, C, f h, f w)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: MaskGITSizes):
        super().__init__()
        widths = sizes.widths[::-1]  # from the lowest resolution up
        self.conv_in = nn.Conv2d(sizes.decoder_channels, widths[0], 3, padding=1)
        self.middle = Blocks(widths[0], widths[0], sizes.num_layers)
        self.levels = nn.ModuleList(
            Blocks(before, width, sizes.num_layers)
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.upsamplers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths[:-1])
        self.norm_out = nn.GroupNorm(_GROUPS, widths[-1], _EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], sizes.channels, 3, padding=1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that outputs the images."""
        return self.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, C, f h, f w)."""
        features = self.middle(self.conv_in(quantized))
        for level, upsampler in zip(self.levels, (*self.upsamplers, None), strict=True):
            features = level(features)
            if upsampler is not None:
                features = upsampler(interpolate(features, scale_factor=2.0, mode="nearest"))
        return self.conv_out(silu(self.norm_out(features)))


def make_maskgit(sizes: NetworkSizes, channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)) -> Network:
    """Check the sizes of network `maskgit`.

    Args:
        sizes: hidden_channels is a multiple of 32, the groups of every norm; each level, and the middle of encoder and
            decoder, has num_residual_layers residual blocks.
        channel_multipliers: width of each level as a multiple of hidden_channels, highest resolution first. The
            published five levels downsample by 16.

    Raises:
        ValueError: a size that cannot work.
    """
    if sizes.hidden_channels < 1 or sizes.hidden_channels % _GROUPS:
        raise ValueError(
            f"hidden_channels of network 'maskgit' must be a multiple of {_GROUPS}, the groups of its normalisation, "
            f"got {sizes.hidden_channels}"
        )
    if min(sizes.in_channels, sizes.num_residual_layers) < 1:
        raise ValueError(
            "in_channels and num_residual_layers of network 'maskgit' must be at least 1, got "
            f"{sizes.in_channels} and {sizes.num_residual_layers}"
        )
    levels = {"number of channel_multipliers": len(channel_multipliers)}
    check_layers(num_residual_layers=sizes.num_residual_layers, **levels)
    if not channel_multipliers or min(channel_multipliers) < 1:
        raise ValueError(
            f"channel_multipliers must be whole numbers from 1 on, one per level, got {list(channel_multipliers)}"
        )
    own = MaskGITSizes(
        sizes.in_channels,
        sizes.encoder_channels,
        sizes.decoder_channels,
        tuple(sizes.hidden_channels * multiplier for multiplier in channel_multipliers),
        sizes.num_residual_layers,
    )
    return Network(partial(MaskGITEncoder, own), partial(MaskGITDecoder, own))
