"""The VQGAN encoder and decoder (METHOD: ImageNet and FFHQ): diffusers' networks between two 1 x 1 convolutions.

VQGANEncoder: images (B, C, H, W) -> latents (B, D, H / f, W / f), f = 2^(levels - 1)
VQGANDecoder: latents (B, D, h, w) -> images (B, C, f h, f w)

Residual blocks and strided convolutions on pyramid levels of hidden_channels times each multiplier, attention on some
levels and always in the middle, below the lowest; the decoder has one more residual block on each level.
"""

from collections.abc import Sequence

from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

# Of every group normalisation, as the published weights have it.
NORM_GROUPS = 32


class VQGANEncoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> latents (B, D, H / f, W / f)."""

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        num_layers: int,
        z_channels: int,
    ):
        super().__init__()
        self.downsampling = 2 ** (len(widths) - 1)
        self.network = Encoder(
            in_channels,
            z_channels,
            tuple("AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in attends),
            tuple(widths),
            num_layers,
            NORM_GROUPS,
            double_z=False,
        )
        self.quant_conv = nn.Conv2d(z_channels, latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / f, W / f)."""
        return self.quant_conv(self.network(images))


class VQGANDecoder(nn.Module):
    """Quantized latents (B, D, h, w) -> images (B, C, f h, f w)."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        widths: Sequence[int],
        attends: Sequence[bool],
        num_layers: int,
        z_channels: int,
    ):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1)
        self.network = Decoder(
            z_channels,
            out_channels,
            # diffusers counts these from the lowest level up, and the widths from the highest down.
            tuple("AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D" for attention in reversed(attends)),
            tuple(widths),
            num_layers,
            NORM_GROUPS,
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
    latent_channels: int,
    hidden_channels: int,
    num_layers: int,
    image_size: int,
    channel_multipliers: Sequence[int] = (1, 2, 2, 4),
    attention_sizes: Sequence[int] | None = None,
    z_channels: int | None = None,
) -> tuple[int, int, list[int], list[bool], int, int]:
    """The arguments of VQGANEncoder and VQGANDecoder from VQTokenizer's.

    Raises:
        ValueError: a size that cannot work.
    """
    multipliers = tuple(channel_multipliers)
    z_channels = latent_channels if z_channels is None else z_channels
    if min(channels, num_layers, z_channels) < 1:
        raise ValueError(
            "in_channels, num_residual_layers and z_channels of network 'vqgan' must be at least 1, got "
            f"{channels}, {num_layers} and {z_channels}"
        )
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"channel_multipliers must be whole numbers from 1 on, one per level, got {list(multipliers)}")
    if hidden_channels < 1 or hidden_channels % NORM_GROUPS:
        raise ValueError(
            f"hidden_channels of network 'vqgan' must be a multiple of its {NORM_GROUPS} normalisation groups, "
            f"got {hidden_channels}"
        )
    # The height of each level's feature maps, from the highest level to the lowest.
    levels = [image_size // 2**level for level in range(len(multipliers))]
    attending = levels[-1:] if attention_sizes is None else attention_sizes
    if never := [size for size in attending if size not in levels]:
        raise ValueError(
            f"attention_sizes holds {never[0]}, which no level has: at image_size {image_size} with "
            f"channel_multipliers {list(multipliers)} the feature maps are {', '.join(map(str, levels))} high"
        )
    widths = [hidden_channels * multiplier for multiplier in multipliers]
    return channels, latent_channels, widths, [size in attending for size in levels], num_layers, z_channels
