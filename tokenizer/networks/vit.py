"""The transformer encoder and decoder of ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627).

The encoder maps each patch of the image to a token with one linear map, adds positions, and lets the tokens attend to
each other; the decoder does the same with the quantised latents, and maps each token back to a patch. Tokens thus meet
in the attention alone. Published sizes, as width / depth / heads: small 512 / 8 / 8, base 768 / 12 / 12, large
1280 / 32 / 16, the last as a decoder of the small encoder.
"""

from dataclasses import dataclass
from functools import partial

import torch
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tokenizer.networks.base import Decoder, Encoder, Network, NetworkSizes
from tokenizer.networks.transposed_conv import TransposedConv2d
from tokenizer.option_checks import check_layers

# Channels of a head, in every size.
_HEAD = 64


@dataclass(frozen=True)
class TransformerSizes:
    """The sizes of a stack of blocks.

    Attributes:
        width: channels of a token; a multiple of 4.
        depth: number of blocks.
        heads: attention heads, of 64 channels each.
        ffn_width: channels between the two layers of a block's feed-forward part.
    """

    width: int
    depth: int
    heads: int
    ffn_width: int


class Block(nn.Module):
    """Compute x + attention(norm(x)), then x + feed-forward(norm(x)) with tanh between its two layers."""

    def __init__(self, sizes: TransformerSizes):
        super().__init__()
        inner = _HEAD * sizes.heads
        self.heads = sizes.heads
        self.norm1 = nn.LayerNorm(sizes.width)
        self.to_qkv = nn.Linear(sizes.width, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.ffn = nn.Sequential(
            nn.Linear(sizes.width, sizes.ffn_width), nn.Tanh(), nn.Linear(sizes.ffn_width, sizes.width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, width) to tokens of the same shape."""
        query, key, value = rearrange(
            self.to_qkv(self.norm1(tokens)), "b n (part heads c) -> part b heads n c", part=3, heads=self.heads
        )
        attended = scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.to_out(rearrange(attended, "b heads n c -> b n (heads c)"))
        return tokens + self.ffn(self.norm2(tokens))


class Transformer(nn.Module):
    """Add positions to a grid of tokens, and send it through the blocks and a last norm.

    Attributes:
        gradient_checkpointing: whether the backward pass recomputes each block; diffusers' switch.
    """

    def __init__(self, sizes: TransformerSizes):
        super().__init__()
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.gradient_checkpointing = False

    def forward(self, grid: Tensor) -> Tensor:
        """Map tokens (B, width, h, w) to tokens of the same shape."""
        height, width = grid.shape[-2:]
        tokens = rearrange(grid, "b c h w -> b (h w) c")
        # In the precision of the weights: under autocast, that sums the blocks up in float32.
        tokens = tokens + grid_positions(height, width, grid.shape[1], grid.device).to(self.norm.weight.dtype)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        return rearrange(self.norm(tokens), "b (h w) c -> b c h w", h=height)


def grid_positions(height: int, width: int, channels: int, device: torch.device | str = "cpu") -> Tensor:
    """Compute the sines and cosines of the rows and columns of a grid, float32 (height * width, channels).

    The first half of the channels is of the row, the other of the column; of each, the first half are sines and the
    other the cosines, of wavelengths from 2 pi to almost 10,000 times 2 pi (Vaswani et al. 2017, along each axis).
    """
    rows, columns = (
        get_1d_sincos_pos_embed_from_grid(channels // 2, torch.arange(length, device=device), dtype=torch.float32)
        for length in (height, width)
    )
    return torch.cat([repeat(rows, "h c -> (h w) c", w=width), repeat(columns, "w c -> (h w) c", h=height)], dim=1)


@dataclass(frozen=True)
class ViTSizes:
    """The sizes of the encoder and the decoder.

    Attributes:
        channels: C, the channels of the images.
        encoder_channels: channels of the encoder's output.
        decoder_channels: channels of the decoder's input.
        patch_size: f, the side of a patch in pixels.
        encoder: the encoder's stack.
        decoder: the decoder's stack.
    """

    channels: int
    encoder_channels: int
    decoder_channels: int
    patch_size: int
    encoder: TransformerSizes
    decoder: TransformerSizes


class ViTEncoder(Encoder):
    """Images (B, C, H, W) in [-1, 1] => encoder output (B, encoder_channels, H / f, W / f)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: ViTSizes):
        super().__init__()
        self.downsampling = patch = sizes.patch_size
        self.from_patches = nn.Conv2d(sizes.channels, sizes.encoder.width, patch, stride=patch)
        self.transformer = Transformer(sizes.encoder)
        self.conv_out = nn.Conv2d(sizes.encoder.width, sizes.encoder_channels, 1)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, C, H, W) => (B, encoder_channels, H / f, W / f)."""
        return self.conv_out(self.transformer(self.from_patches(images)))


class ViTDecoder(Decoder):
    """Quantised latents (B, decoder_channels, h, w) => images (B, C, f h, f w)."""

    supports_gradient_checkpointing = True

    def __init__(self, sizes: ViTSizes):
        super().__init__()
        self.conv_in = nn.Conv2d(sizes.decoder_channels, sizes.decoder.width, 1)
        self.transformer = Transformer(sizes.decoder)
        self.to_patches = TransposedConv2d(
            sizes.decoder.width, sizes.channels, sizes.patch_size, stride=sizes.patch_size
        )
        self.apply(_initialise)

    @property
    def last_layer(self) -> nn.ConvTranspose2d:
        """The linear map from tokens to the pixels of their patches."""
        return self.to_patches

    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, C, f h, f w)."""
        return self.to_patches(self.transformer(self.conv_in(quantized)))


def _initialise(module: nn.Module) -> None:
    """Draw the weights of a linear map, of which the convolutions are some, after Glorot and Bengio (2010)."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        # As a matrix from inputs to outputs; a patch is a vector of all its values.
        nn.init.xavier_uniform_(module.weight.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_vit(
    sizes: NetworkSizes,
    patch_size: int = 8,
    heads: int | None = None,
    ffn_width: int | None = None,
    decoder_width: int | None = None,
    decoder_depth: int | None = None,
    decoder_heads: int | None = None,
    decoder_ffn_width: int | None = None,
) -> Network:
    """Check the sizes of network `vit`.

    Args:
        sizes: hidden_channels is the width of a token; encoder and decoder each have num_residual_layers blocks.
        patch_size: f, the side of a patch in pixels.
        heads: attention heads of a block, each of 64 channels; None: one for each 64 of the width, or 1.
        ffn_width: width between the two layers of the feed-forward part of a block; None: 4 times that of a token.
        decoder_width: width of a token in the decoder; None: hidden_channels.
        decoder_depth: blocks of the decoder; None: num_residual_layers.
        decoder_heads: heads of the decoder; None: `heads`.
        decoder_ffn_width: feed-forward width of the decoder; None: `ffn_width`.

    Raises:
        ValueError: a size that cannot work.
    """
    if min(sizes.in_channels, patch_size) < 1:
        raise ValueError(
            f"in_channels and patch_size of network 'vit' must be at least 1, got {sizes.in_channels} and {patch_size}"
        )
    encoder = _stack(
        heads, ffn_width, hidden_channels=sizes.hidden_channels, num_residual_layers=sizes.num_residual_layers
    )
    decoder = _stack(
        heads if decoder_heads is None else decoder_heads,
        ffn_width if decoder_ffn_width is None else decoder_ffn_width,
        decoder_width=encoder.width if decoder_width is None else decoder_width,
        decoder_depth=encoder.depth if decoder_depth is None else decoder_depth,
    )
    own = ViTSizes(sizes.in_channels, sizes.encoder_channels, sizes.decoder_channels, patch_size, encoder, decoder)
    return Network(partial(ViTEncoder, own), partial(ViTDecoder, own))


def _stack(heads: int | None, ffn_width: int | None, **named: int) -> TransformerSizes:
    """Check a stack's sizes; `named` are its width and its depth by the names of their options."""
    (width_name, width), (depth_name, depth) = named.items()
    if width < 4 or width % 4:
        raise ValueError(f"{width_name} of network 'vit' must be a multiple of 4, for its positions, got {width}")
    heads = max(1, width // _HEAD) if heads is None else heads
    ffn_width = 4 * width if ffn_width is None else ffn_width
    if min(depth, heads, ffn_width) < 1:
        raise ValueError(
            f"{depth_name}, heads and ffn_width of network 'vit' must be at least 1, got {depth}, {heads}, {ffn_width}"
        )
    check_layers(**{depth_name: depth})
    return TransformerSizes(width, depth, heads, ffn_width)
