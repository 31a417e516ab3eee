"""The VQGAN encoder and decoder of the paper's ImageNet and FFHQ experiments (Esser et al. 2021).

They are diffusers' `Encoder` and `Decoder` with a 1 x 1 convolution on either side of the quantizer. Level i has
hidden_channels * channel_multipliers[i] channels, and half the height and width of level i - 1, so f = 2^(levels - 1).
Each level is a stack of residual blocks, one more in the decoder than in the encoder. Attention follows each block on
the chosen levels, and stands between the two blocks of the middle, below the lowest level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import diffusers.models.autoencoders.vae as diffusers_vae
from torch import Tensor, nn

from tokenizer.networks.base import Decoder, Encoder, Network, NetworkSizes
from tokenizer.option_checks import check_layers


@dataclass(frozen=True)
class VQGANSizes:
    """The sizes of the encoder and the decoder.

    Attributes:
        channels: C, the channels of the images.
        encoder_channels: channels of the encoder's output.
        decoder_channels: channels of the decoder's input.
        widths: width of each level, from the highest resolution to the lowest.
        attends: whether each level has attention.
        num_layers: residual blocks on each level of the encoder.
        z_channels: channels between diffusers' network and the 1 x 1 convolution.
        norm_groups: groups of every group normalisation.
        middle_attends: whether the encoder's middle has attention; the decoder's always has.
    """

    channels: int
    encoder_channels: int
    decoder_channels: int
    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    num_layers: int
    z_channels: int
    norm_groups: int
    middle_attends: bool = True


class VQGANEncoder(Encoder):
    """Images (B, C, H, W) in [-1, 1] => encoder output (B, encoder_channels, H / f, W / f)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.downsampling = 2 ** (len(sizes.widths) - 1)
        self.network = diffusers_vae.Encoder(
            sizes.channels,
            sizes.z_channels,
            tuple("AttnDownEncoderBlock2D" if attends else "DownEncoderBlock2D" for attends in sizes.attends),
            sizes.widths,
            sizes.num_layers,
            sizes.norm_groups,
            double_z=False,
            mid_block_add_attention=sizes.middle_attends,
        )
        self.quant_conv = nn.Conv2d(sizes.z_channels, sizes.encoder_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, C, H, W) => (B, encoder_channels, H / f, W / f)."""
        return self.quant_conv(self.network(images))


class VQGANDecoder(Decoder):
    """Quantised latents (B, decoder_channels, h, w) => images (B, C, f h, f w)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(sizes.decoder_channels, sizes.z_channels, 1)
        self.network = diffusers_vae.Decoder(
            sizes.z_channels,
            sizes.channels,
            decoder_blocks(sizes),
            sizes.widths,
            sizes.num_layers,
            sizes.norm_groups,
        )

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that outputs the images."""
        return self.network.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, C, f h, f w)."""
        return self.network(self.post_quant_conv(quantized))


def decoder_blocks(sizes: VQGANSizes) -> tuple[str, ...]:
    """List diffusers' block types of the decoder's levels: from the lowest resolution up, unlike its widths."""
    return tuple("AttnUpDecoderBlock2D" if attends else "UpDecoderBlock2D" for attends in reversed(sizes.attends))


def make_vqgan(
    sizes: NetworkSizes,
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4),
    attention_sizes: tuple[int, ...] | None = None,
    z_channels: int | None = None,
    norm_groups: int = 32,
    encoder_attends: bool = True,
    decoder_hidden_channels: int | None = None,
) -> Network:
    """Check the sizes of network `vqgan`.

    Args:
        sizes: hidden_channels is a multiple of norm_groups; each level of the encoder has num_residual_layers residual
            blocks, each level of the decoder one more.
        channel_multipliers: width of each level as a multiple of hidden_channels, highest resolution first. Four levels
            downsample by 8; (1, 1, 2, 2, 4) downsamples by 16.
        attention_sizes: heights of the feature maps whose levels have attention, for images of image_size; None: the
            lowest level.
        z_channels: channels between diffusers' networks and the 1 x 1 convolutions; None: decoder_channels.
        norm_groups: groups of every group normalisation; the published 32 are for 128 hidden_channels. A group of one
            channel normalises away the mean of that channel over the image.
        encoder_attends: whether the encoder has attention, on its levels and in its middle.
        decoder_hidden_channels: base width of the decoder; None: hidden_channels.

    Raises:
        ValueError: a size that cannot work.
    """
    decoder_channels = sizes.hidden_channels if decoder_hidden_channels is None else decoder_hidden_channels
    for name, width in (("hidden_channels", sizes.hidden_channels), ("decoder_hidden_channels", decoder_channels)):
        if norm_groups < 1 or width < 1 or width % norm_groups:
            raise ValueError(
                f"{name} of network 'vqgan' must be a multiple of norm_groups, its normalisation groups, "
                f"got {width} and {norm_groups}"
            )
    own = vqgan_sizes("vqgan", sizes, channel_multipliers, attention_sizes, z_channels, norm_groups)
    widths = tuple(decoder_channels * multiplier for multiplier in channel_multipliers)
    encoder = own if encoder_attends else replace(own, attends=(False,) * len(own.attends), middle_attends=False)
    return Network(partial(VQGANEncoder, encoder), partial(VQGANDecoder, replace(own, widths=widths)))


def vqgan_sizes(
    name: str,
    sizes: NetworkSizes,
    channel_multipliers: Sequence[int],
    attention_sizes: Sequence[int] | None,
    z_channels: int | None,
    norm_groups: int,
) -> VQGANSizes:
    """Check and complete the sizes of a VQGAN, whose arguments are those of `make_vqgan`; errors call it `name`.

    Raises:
        ValueError: a size that cannot work.
    """
    channels, hidden_channels, num_layers = sizes.in_channels, sizes.hidden_channels, sizes.num_residual_layers
    multipliers = tuple(channel_multipliers)
    z_channels = sizes.decoder_channels if z_channels is None else z_channels
    if min(channels, num_layers, z_channels) < 1:
        raise ValueError(
            f"in_channels, num_residual_layers and z_channels of network {name!r} must be at least 1, got "
            f"{channels}, {num_layers} and {z_channels}"
        )
    check_layers(num_residual_layers=num_layers, **{"number of channel_multipliers": len(multipliers)})
    if not multipliers or min(multipliers) < 1:
        raise ValueError(f"channel_multipliers must be whole numbers from 1 on, one per level, got {list(multipliers)}")
    if sizes.image_size >> (len(multipliers) - 1) < 1:
        raise ValueError(
            f"images of {sizes.image_size} pixels cannot be halved {len(multipliers) - 1} times, once per level but "
            "the first: give channel_multipliers fewer entries"
        )
    # The height of each level's feature maps, from the highest resolution to the lowest.
    heights = [sizes.image_size // 2**level for level in range(len(multipliers))]
    attending = heights[-1:] if attention_sizes is None else attention_sizes
    if never := [size for size in attending if size not in heights]:
        raise ValueError(
            f"attention_sizes holds {never[0]}, which no level has: at image_size {sizes.image_size} with "
            f"channel_multipliers {list(multipliers)} the feature maps are {', '.join(map(str, heights))} high"
        )
    return VQGANSizes(
        channels,
        sizes.encoder_channels,
        sizes.decoder_channels,
        tuple(hidden_channels * multiplier for multiplier in multipliers),
        tuple(height in attending for height in heights),
        num_layers,
        z_channels,
        norm_groups,
    )
