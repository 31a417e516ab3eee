"""The VQGAN encoder and decoder (METHOD: ImageNet and FFHQ): diffusers' networks between two 1 x 1 convolutions.

VQGANEncoder: images (B, C, H, W) -> latents (B, D, H / f, W / f), f = 2^(levels - 1)
VQGANDecoder: latents (B, D, h, w) -> images (B, C, f h, f w)

Residual blocks and strided convolutions on pyramid levels of hidden_channels times each multiplier, attention on some
levels and always in the middle, below the lowest; the decoder has one more residual block on each level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn


@dataclass(frozen=True)
class VQGANSizes:
    """Of encoder and decoder alike.

    Attributes:
        channels: C, the images'.
        encoder_channels: of what the encoder gives.
        decoder_channels: of what the decoder takes.
        widths: of the levels, images first.
        attends: whether each level attends.
        num_layers: residual blocks on a level of the encoder.
        z_channels: between the network and its 1 x 1 convolution.
        norm_groups: of every group normalisation.
    """

    channels: int
    encoder_channels: int
    decoder_channels: int
    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    num_layers: int
    z_channels: int
    norm_groups: int


class VQGANEncoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> latents (B, D, H / f, W / f)."""

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.downsampling = 2 ** (len(sizes.widths) - 1)
        self.network = Encoder(
            sizes.channels,
            sizes.z_channels,
            tuple("AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D" for attends in sizes.attends),
            sizes.widths,
            sizes.num_layers,
            sizes.norm_groups,
            double_z=False,
        )
        self.quant_conv = nn.Conv2d(sizes.z_channels, sizes.encoder_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / f, W / f)."""
        return self.quant_conv(self.network(images))


class VQGANDecoder(nn.Module):
    """Quantized latents (B, D, h, w) -> images (B, C, f h, f w)."""

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(sizes.decoder_channels, sizes.z_channels, 1)
        self.network = Decoder(
            sizes.z_channels,
            sizes.channels,
            # diffusers counts these from the lowest level up, and the widths from the highest down.
            tuple("AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D" for attends in reversed(sizes.attends)),
            sizes.widths,
            sizes.num_layers,
            sizes.norm_groups,
        )

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that makes the images."""
        return self.network.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, f h, f w)."""
        return self.network(self.post_quant_conv(quantized))


def vqgan_sizes(
    channels: int,
    encoder_channels: int,
    decoder_channels: int,
    hidden_channels: int,
    num_layers: int,
    image_size: int,
    channel_multipliers: Sequence[int] = (1, 2, 2, 4),
    attention_sizes: Sequence[int] | None = None,
    z_channels: int | None = None,
    norm_groups: int = 32,
) -> VQGANSizes:
    """The sizes from VQTokenizer's arguments.

    Raises:
        ValueError: a size that cannot work.
    """
    multipliers = tuple(channel_multipliers)
    z_channels = decoder_channels if z_channels is None else z_channels
    if min(channels, num_layers, z_channels) < 1:
        raise ValueError(
            "in_channels, num_residual_layers and z_channels of network 'vqgan' must be at least 1, got "
            f"{channels}, {num_layers} and {z_channels}"
        )
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"channel_multipliers must be whole numbers from 1 on, one per level, got {list(multipliers)}")
    if norm_groups < 1 or hidden_channels < 1 or hidden_channels % norm_groups:
        raise ValueError(
            "hidden_channels of network 'vqgan' must be a multiple of norm_groups, its normalisation groups, "
            f"got {hidden_channels} and {norm_groups}"
        )
    if image_size >> (len(multipliers) - 1) < 1:
        raise ValueError(
            f"images of {image_size} pixels cannot be halved {len(multipliers) - 1} times, once per level but the "
            "first: give channel_multipliers fewer entries"
        )
    # The height of each level's feature maps, from the highest level to the lowest.
    levels = [image_size // 2**level for level in range(len(multipliers))]
    attending = levels[-1:] if attention_sizes is None else attention_sizes
    if never := [size for size in attending if size not in levels]:
        raise ValueError(
            f"attention_sizes holds {never[0]}, which no level has: at image_size {image_size} with "
            f"channel_multipliers {list(multipliers)} the feature maps are {', '.join(map(str, levels))} high"
        )
    widths = tuple(hidden_channels * multiplier for multiplier in multipliers)
    attends = tuple(size in attending for size in levels)
    ends = (channels, encoder_channels, decoder_channels)
    return VQGANSizes(*ends, widths, attends, num_layers, z_channels, norm_groups)
