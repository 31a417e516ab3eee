"""The network of MoVQ (Zheng et al. 2022, arXiv 2209.09002): VQGAN, whose decoder is modulated by the codes' rows.

Every normalisation of the decoder is the paper's spatial norm of features f and quantised latents q,

    SN(f, q) = GN(f) (W_y q + b_y) + (W_b q + b_b),

with a group norm of 32 groups, 1 x 1 convolutions W from the channels of q to those of f, and q resized to the sides of
f by nearest neighbour. So each level sees the codes themselves. The encoder is VQGAN's.

The norm and the blocks that take it are those of diffusers, `SpatialNorm` and `norm_type="spatial"`. They let q have as
many channels as the decoder's input; here it has decoder_channels, whatever `z_channels` is.
"""

from functools import partial

import diffusers.models.autoencoders.vae as diffusers_vae
from torch import Tensor, nn

from tokenizer.networks.base import Decoder, Network, NetworkSizes
from tokenizer.networks.vqgan import VQGANEncoder, VQGANSizes, decoder_blocks, vqgan_sizes

# Groups of the spatial norm, fixed in the paper and in diffusers.
_GROUPS = 32


class MoVQDecoder(Decoder):
    """Quantised latents (B, decoder_channels, h, w) => images (B, C, f h, f w)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(sizes.decoder_channels, sizes.z_channels, 1)
        # diffusers gives the norms as many channels of q as its own input has.
        self.network = diffusers_vae.Decoder(
            sizes.decoder_channels,
            sizes.channels,
            decoder_blocks(sizes),
            sizes.widths,
            sizes.num_layers,
            sizes.norm_groups,
            norm_type="spatial",
        )
        if sizes.z_channels != sizes.decoder_channels:
            self.network.conv_in = nn.Conv2d(sizes.z_channels, sizes.widths[-1], 3, padding=1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that outputs the images."""
        return self.network.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, C, f h, f w)."""
        return self.network(self.post_quant_conv(quantized), quantized)


def make_movq(
    sizes: NetworkSizes,
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4),
    attention_sizes: tuple[int, ...] | None = None,
    z_channels: int | None = None,
) -> Network:
    """Check the sizes of network `movq`.

    Args:
        sizes: hidden_channels is a multiple of 32, the groups of every norm; layers as in `make_vqgan`.
        channel_multipliers: as in `make_vqgan`.
        attention_sizes: as in `make_vqgan`.
        z_channels: as in `make_vqgan`; the norms take the quantised latents, which have decoder_channels.

    Raises:
        ValueError: a size that cannot work.
    """
    if sizes.hidden_channels < 1 or sizes.hidden_channels % _GROUPS:
        raise ValueError(
            f"hidden_channels of network 'movq' must be a multiple of {_GROUPS}, the groups of its spatial norms, "
            f"got {sizes.hidden_channels}"
        )
    own = vqgan_sizes("movq", sizes, channel_multipliers, attention_sizes, z_channels, _GROUPS)
    return Network(partial(VQGANEncoder, own), partial(MoVQDecoder, own))
