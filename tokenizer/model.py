"""VQTokenizer: images <-> latents <-> codes, in diffusers' folder format."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from tokenizer.loading.limits import LARGEST_SIDE, check_at_most
from tokenizer.loading.safe_mixin import CompleteWeights
from tokenizer.networks.conv import ConvDecoder, ConvEncoder, conv_sizes
from tokenizer.networks.vqgan import VQGANDecoder, VQGANEncoder, vqgan_sizes
from tokenizer.quantizers import QuantizerOutput, make_quantizer


@dataclass
class EncoderOutput(BaseOutput):
    """`latents`: (B, latent channels, h, w), before quantisation."""

    latents: Tensor


@dataclass
class DecoderOutput(BaseOutput):
    """`sample`: images (B, C, H, W), about [-1, 1], not clamped."""

    sample: Tensor


@dataclass
class TokenizerOutput(BaseOutput):
    """A full pass.

    Attributes:
        reconstruction: (B, C, H, W); (2 B, C, H, W) in the training of a quantizer whose images are decoded twice: all
            of them from what the quantizer gave, then all of them from what it has `sampled`.
        encoder_output: what the encoder gave.
        latents: (B, latent channels, h, w).
        codes: as `VQTokenizer.encode_codes` gives them; none without codes.
        losses: the quantizer's, by name, not weighted.
        counts: (K,) how often each code was used; none without codes.
    """

    # Under mixed precision accelerate makes the output anew from one dictionary, which needs the defaults.
    reconstruction: Tensor
    encoder_output: Tensor = None
    latents: Tensor = None
    codes: Tensor = None
    losses: dict[str, Tensor] = None
    counts: Tensor = None


class VQTokenizer(CompleteWeights, ModelMixin, ConfigMixin):
    """An image tokenizer: encoder, quantizer, decoder.

    Args:
        in_channels: C, the images' channels.
        image_size: height and width of the images, in pixels; a multiple of the network's downsampling.
        network: encoder and decoder; `conv` is the small convolutional network; `vqgan` the large one, with a level for
            each of channel_multipliers, downsampling by 2 between two levels.
        quantizer: name of the quantizer, one of `tokenizer.quantizers.QUANTIZERS`.
        codebook_size: K, the number of codes; without meaning to a continuous quantizer.
        codebook_dim: D, the size of a code, or of what else stands for a latent token in front of the decoder. Between
            the networks' last and first convolutions, it is the size of factorised codes as well.
        hidden_channels: width of the network; of `conv` even, of `vqgan` a multiple of norm_groups.
        residual_channels: of `conv` alone: inner width of a residual layer; None is 32.
        strided_layers: of `conv` alone: its convolutions of stride 2, 1 or 2; None is 2, downsampling by 4.
        num_residual_layers: residual layers in the encoder and in the decoder; of `vqgan` on each of the encoder's
            levels, and one more on each of the decoder's.
        channel_multipliers: of `vqgan` alone: each level's width as a multiple of hidden_channels, images first; None
            is (1, 2, 2, 4), downsampling by 8. (1, 1, 2, 2, 4) downsamples by 16.
        attention_sizes: of `vqgan` alone: the heights of the feature maps, for images of image_size, on whose levels
            the network attends; None is the lowest level's. Below the lowest level it always attends.
        z_channels: of `vqgan` alone: channels between the networks and the 1 x 1 convolutions around the quantizer;
            None is codebook_dim.
        norm_groups: of `vqgan` alone: groups of every group normalisation; None is 32, as published for 128
            hidden_channels. A group of one channel loses that channel's mean over the image in each normalisation.
        quantizer_options: the quantizer's other arguments, by name; what is left out keeps the quantizer's default.

    Raises:
        ValueError: a size, name or option that cannot work.
    """

    _keep_in_fp32_modules = ["bottleneck"]  # noqa: RUF012 (diffusers reads this name on the class)
    _supports_gradient_checkpointing = True
    _result = "tokenizer"

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        network: Literal["conv", "vqgan"] = "conv",
        quantizer: str = "arc",
        codebook_size: int = 512,
        codebook_dim: int = 64,
        hidden_channels: int = 128,
        residual_channels: int | None = None,
        strided_layers: int | None = None,
        num_residual_layers: int = 2,
        channel_multipliers: tuple[int, ...] | None = None,
        attention_sizes: tuple[int, ...] | None = None,
        z_channels: int | None = None,
        norm_groups: int | None = None,
        quantizer_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_at_most(LARGEST_SIDE, image_size=image_size)
        conv = {"residual_channels": residual_channels, "strided_layers": strided_layers}
        vqgan = {
            "channel_multipliers": channel_multipliers,
            "attention_sizes": attention_sizes,
            "z_channels": z_channels,
            "norm_groups": norm_groups,
        }
        # The bottleneck says what goes in and out of it; its table is drawn after the encoder's weights.
        bottleneck = partial(make_quantizer, quantizer, codebook_size, codebook_dim, quantizer_options or {})
        with torch.device("meta"):
            encoder_channels = bottleneck().encoder_channels
        common = (in_channels, encoder_channels, codebook_dim, hidden_channels, num_residual_layers)
        if network == "conv":
            make_encoder, make_decoder = ConvEncoder, ConvDecoder
            sizes = conv_sizes(*common, **_own("conv", conv, vqgan))
        elif network == "vqgan":
            make_encoder, make_decoder = VQGANEncoder, VQGANDecoder
            sizes = vqgan_sizes(*common, image_size, **_own("vqgan", vqgan, conv))
        else:
            raise ValueError(f"unknown network {network!r}; there are 'conv' and 'vqgan'")
        self.encoder = make_encoder(sizes)
        # Not called `quantizer`: diffusers answers that name with the constructor argument.
        self.bottleneck = bottleneck()
        self.bottleneck.values_per_token = in_channels * self.encoder.downsampling**2
        if image_size < self.downsampling or image_size % self.downsampling:
            raise ValueError(f"image_size must be a multiple of {self.downsampling}, got {image_size}")
        self.decoder = make_decoder(sizes)

    @property
    def codebook(self) -> Tensor:
        """The effective table, (K, D).

        Raises:
            ValueError: a continuous quantizer has none.
        """
        return self.bottleneck.codebook

    @property
    def has_codes(self) -> bool:
        """Whether the quantizer is discrete. Of a continuous one, the calls that give or take codes are errors."""
        return self.bottleneck.depth > 0

    @property
    def downsampling(self) -> int:
        """Pixels per latent token along each side."""
        return self.encoder.downsampling * self.bottleneck.downsampling

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, h, w) of one image's latents; D channels in most quantizers."""
        side = self.config.image_size // self.downsampling
        return self.bottleneck.latent_channels, side, side

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(h, w) of one image's codes, or (h, w, depth) where a token has several."""
        depth = self.bottleneck.depth
        return self.latent_shape[1:] if depth == 1 else (*self.latent_shape[1:], depth)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Keeps the activations at the levels' borders alone and computes the others again in the backward pass.

        Raises:
            ValueError: the network is `conv`, which cannot.
        """
        if self.config.network == "conv":
            raise ValueError("network 'conv' has no gradient checkpointing; it is of network 'vqgan'")
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    # The hooks of a model that moves itself to the device when it is needed fire in `forward` alone; each other way in
    # asks for them.
    @apply_forward_hook
    def encode(self, images: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """Images (B, C, H, W) in [-1, 1] -> `.latents` (B, D, h, w), before quantisation."""
        latents = self.bottleneck.latents(self._encoder_output(images))
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def encode_codes(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> codes (B, h, w) int64, or (B, h, w, depth)."""
        return self.bottleneck.encode(self.encode(images).latents)

    @apply_forward_hook
    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Latents (B, D, h, w) -> `.quantized` (straight-through), `.codes`, `.losses`, `.usage`, `.perplexity`.

        Raises:
            ValueError: the quantizer's losses need more of the encoder than latents, or there are no codes.
        """
        if self.bottleneck.encoder_channels != self.bottleneck.latent_channels or self.bottleneck.downsampling > 1:
            raise ValueError(
                f"quantizer {self.config.quantizer!r} quantises what the encoder gives, of which latents are a part; "
                "call the tokenizer on images, or encode and decode"
            )
        return self.bottleneck(latents)

    @apply_forward_hook
    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Quantises latents (B, D, h, w), with a straight-through gradient, then decodes: `.sample` (B, C, H, W)."""
        sample = self.decoder(self.bottleneck.quantize_latents(latents).to(self.dtype))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64, or (B, h, w, depth) -> images (B, C, H, W), about [-1, 1]."""
        return self.decoder(self.bottleneck.lookup(codes).to(self.dtype))

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Images (B, C, H, W) in [-1, 1] -> reconstruction, latents, codes, losses, counts, for training."""
        encoder_output = self._encoder_output(images)
        quantized = self.bottleneck(encoder_output)
        decoded = [part for part in (quantized.quantized, quantized.sampled) if part is not None]
        return TokenizerOutput(
            reconstruction=self.decoder(decoded[0] if len(decoded) == 1 else torch.cat(decoded)),
            encoder_output=encoder_output,
            latents=self.bottleneck.latents(encoder_output),
            codes=quantized.codes,
            losses=quantized.losses,
            counts=quantized.counts,
        )

    def _encoder_output(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> what the encoder gives."""
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(f"expected images (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
        if images.shape[2] % self.downsampling or images.shape[3] % self.downsampling:
            raise ValueError(f"image sides must be multiples of {self.downsampling}, got {tuple(images.shape[2:])}")
        return self.encoder(images)


def _own(network: str, own: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """A network's own arguments as far as they are given; those of the other network must not be."""
    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"network {network!r} has no {given[0]}; its own arguments are {', '.join(own)}")
    return {name: value for name, value in own.items() if value is not None}
