"""The network of DF-VQGAN (NUWA-LIP, Ni et al. 2022, arXiv 2202.05009): an encoder that keeps damage in its place.

The encoder is VQGAN's, of masked layers: a feature map of level l has the image's mask, 1 where it is defective,
max-pooled by 2^l. The decoder mirrors the encoder: on each level it has as many residual blocks, the last of which
changes the width.

Without a mask the image counts as defective as a whole. So the paper measures reconstructions, and this project trains
and uses the network. The skips from encoder to decoder, which the paper has at intact places to fill in the others, are
not here: a tokenizer decodes codes alone.
"""

from functools import partial
from itertools import pairwise

import torch
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, silu

from tokenizer.networks.base import Decoder, Encoder, Network, NetworkSizes
from tokenizer.networks.masked import GROUPS, MaskedAttention, MaskedConv2d, MaskedGroupNorm, MaskedResidualBlock
from tokenizer.networks.vqgan import VQGANSizes, vqgan_sizes


class _Checkpointed(nn.Module):
    """A network whose blocks obey diffusers' switch of gradient checkpointing."""

    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = False

    def run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Call a block, or compute it again in the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


class _Level(nn.Module):
    """The residual blocks of a level, and the convolution that halves it where a level follows."""

    def __init__(self, inputs: int, width: int, layers: int, halves: bool):
        super().__init__()
        widths = [inputs] + [width] * layers
        self.resnets = nn.ModuleList(MaskedResidualBlock(*pair) for pair in pairwise(widths))
        convolutions = [nn.ModuleDict({"conv": MaskedConv2d(width, width, 3, stride=2)})] if halves else []
        self.downsamplers = nn.ModuleList(convolutions)

    def forward(self, features: Tensor, mask: Tensor | None, below: Tensor | None) -> Tensor:
        """Transform features (B, C, H, W) with their mask, and halve them to the mask `below` where a level follows."""
        for resnet in self.resnets:
            features = resnet(features, mask)
        for downsampler in self.downsamplers:
            edges = (0, 1, 0, 1)
            features = downsampler["conv"](pad(features, edges), None if mask is None else pad(mask, edges), below)
        return features


class _Middle(nn.Module):
    """Attention between two residual blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.resnets = nn.ModuleList(MaskedResidualBlock(width, width) for _ in range(2))
        self.attentions = nn.ModuleList([MaskedAttention(width)])

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Transform features (B, C, H, W) with their mask."""
        return self.resnets[1](self.attentions[0](self.resnets[0](features, mask), mask), mask)


class _MaskedNetwork(_Checkpointed):
    """diffusers' `Encoder` with masked layers."""

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        widths, last = sizes.widths, len(sizes.widths) - 1
        self.conv_in = MaskedConv2d(sizes.channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Level(widths[max(0, level - 1)], width, sizes.num_layers, halves=level < last)
            for level, width in enumerate(widths)
        )
        self.mid_block = _Middle(widths[-1])
        self.conv_norm_out = MaskedGroupNorm(widths[-1])
        self.conv_out = MaskedConv2d(widths[-1], sizes.z_channels, 3, padding=1)

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """Encode images (B, C, H, W) with their mask (B, 1, H, W)."""
        features = self.conv_in(images, mask)
        for block in self.down_blocks:
            below = max_pool2d(mask, 2) if mask is not None and block.downsamplers else mask
            features, mask = self.run(block, features, mask, below), below
        features = self.run(self.mid_block, features, mask)
        return self.conv_out(silu(self.conv_norm_out(features, mask)), mask)


class _MirroredNetwork(_Checkpointed):
    """diffusers' decoder blocks in the encoder's order, reversed."""

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        widths, low = sizes.widths, sizes.widths[-1]
        norms = {"resnet_groups": GROUPS, "temb_channels": None}
        self.conv_in = nn.Conv2d(sizes.z_channels, low, 3, padding=1)
        self.mid_block = UNetMidBlock2D(low, attention_head_dim=low, **norms)
        self.up_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            # diffusers changes the width in the first of its blocks: so the last one is a stack of its own.
            if sizes.num_layers > 1:
                stack = UpDecoderBlock2D(width, width, num_layers=sizes.num_layers - 1, add_upsample=False, **norms)
                self.up_blocks.append(stack)
            self.up_blocks.append(UpDecoderBlock2D(width, widths[max(0, level - 1)], add_upsample=level > 0, **norms))
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], sizes.channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Decode features (B, z_channels, h, w) to images (B, C, f h, f w)."""
        features = self.run(self.mid_block, self.conv_in(features))
        for block in self.up_blocks:
            features = self.run(block, features)
        return self.conv_out(silu(self.conv_norm_out(features)))


class DFEncoder(Encoder):
    """Images (B, C, H, W) in [-1, 1] => encoder output (B, encoder_channels, H / f, W / f)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.downsampling = 2 ** (len(sizes.widths) - 1)
        self.network = _MaskedNetwork(sizes)
        self.quant_conv = nn.Conv2d(sizes.z_channels, sizes.encoder_channels, 1)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode images: (B, C, H, W) => (B, encoder_channels, H / f, W / f).

        Args:
            images: (B, C, H, W) in [-1, 1].
            mask: (B, 1, H, W) of the images' dtype, 1 where they are defective and 0 elsewhere; None: 1 everywhere.
        """
        return self.quant_conv(self.network(images, mask))


class DFDecoder(Decoder):
    """Quantised latents (B, decoder_channels, h, w) => images (B, C, f h, f w)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: VQGANSizes):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(sizes.decoder_channels, sizes.z_channels, 1)
        self.network = _MirroredNetwork(sizes)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The convolution that outputs the images."""
        return self.network.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, C, f h, f w)."""
        return self.network(self.post_quant_conv(quantized))


def make_df(
    sizes: NetworkSizes, channel_multipliers: tuple[int, ...] = (1, 1, 2, 4), z_channels: int | None = None
) -> Network:
    """Check the sizes of network `df`.

    Args:
        sizes: hidden_channels is a multiple of 32, the groups of every norm; each level of encoder and decoder has
            num_residual_layers residual blocks. Attention is in the middle alone.
        channel_multipliers: as in `make_vqgan`.
        z_channels: as in `make_vqgan`.

    Raises:
        ValueError: a size that cannot work.
    """
    if sizes.hidden_channels < 1 or sizes.hidden_channels % GROUPS:
        raise ValueError(
            f"hidden_channels of network 'df' must be a multiple of {GROUPS}, the groups of its norms, got "
            f"{sizes.hidden_channels}"
        )
    own = vqgan_sizes("df", sizes, channel_multipliers, (), z_channels, GROUPS)
    return Network(partial(DFEncoder, own), partial(DFDecoder, own))
