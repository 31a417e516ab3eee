"""VQTokenizer: images <-> latents <-> codes, in diffusers' folder format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from tokenizer.complete_weights import CompleteWeights
from tokenizer.networks import ConvDecoder, ConvEncoder, conv_sizes
from tokenizer.quantizers import QuantizerOutput, make_quantizer
from tokenizer.straight_through import straight_through
from tokenizer.vqgan import VQGANDecoder, VQGANEncoder, vqgan_sizes


@dataclass
class EncoderOutput(BaseOutput):
    """`latents`: (B, D, h, w), before quantisation."""

    latents: Tensor


@dataclass
class DecoderOutput(BaseOutput):
    """`sample`: images (B, C, H, W), about [-1, 1], not clamped."""

    sample: Tensor


@dataclass
class TokenizerOutput(BaseOutput):
    """A full pass: reconstruction (B, C, H, W), latents (B, D, h, w), codes (B, h, w), losses, counts (K,).

    `losses` are the quantizer's, by name, not weighted.
    """

    # Under mixed precision accelerate makes the output anew from one dictionary, which needs the defaults.
    reconstruction: Tensor
    latents: Tensor = None
    codes: Tensor = None
    losses: dict[str, Tensor] = None
    counts: Tensor = None


class VQTokenizer(CompleteWeights, ModelMixin, ConfigMixin):
    """An image tokenizer: encoder, quantizer, decoder.

    Args:
        in_channels: C, the images' channels.
        image_size: height and width of the images, in pixels; a multiple of the network's downsampling.
        network: encoder and decoder; `conv` is the small convolutional network, downsampling by 4; `vqgan` the large
            one, with a level for each of channel_multipliers, downsampling by 2 between two levels.
        quantizer: name of the quantizer, one of `tokenizer.quantizers.QUANTIZERS`.
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code and of a latent token.
        hidden_channels: width of the network; of `conv` even, of `vqgan` a multiple of norm_groups.
        residual_channels: of `conv` alone: inner width of a residual layer; None is 32.
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
        num_residual_layers: int = 2,
        channel_multipliers: tuple[int, ...] | None = None,
        attention_sizes: tuple[int, ...] | None = None,
        z_channels: int | None = None,
        norm_groups: int | None = None,
        quantizer_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        conv = {"residual_channels": residual_channels}
        vqgan = {
            "channel_multipliers": channel_multipliers,
            "attention_sizes": attention_sizes,
            "z_channels": z_channels,
            "norm_groups": norm_groups,
        }
        common = (in_channels, codebook_dim, hidden_channels, num_residual_layers)
        if network == "conv":
            make_encoder, make_decoder = ConvEncoder, ConvDecoder
            sizes = conv_sizes(*common, **_own("conv", conv, vqgan))
        elif network == "vqgan":
            make_encoder, make_decoder = VQGANEncoder, VQGANDecoder
            sizes = (vqgan_sizes(*common, image_size, **_own("vqgan", vqgan, conv)),)
        else:
            raise ValueError(f"unknown network {network!r}; there are 'conv' and 'vqgan'")
        self.encoder = make_encoder(*sizes)
        if image_size < self.downsampling or image_size % self.downsampling:
            raise ValueError(f"image_size must be a multiple of {self.downsampling}, got {image_size}")
        # Not called `quantizer`: diffusers answers that name with the constructor argument.
        self.bottleneck = make_quantizer(quantizer, codebook_size, codebook_dim, quantizer_options or {})
        self.decoder = make_decoder(*sizes)

    @property
    def codebook(self) -> Tensor:
        """The effective table, (K, D)."""
        return self.bottleneck.codebook

    @property
    def downsampling(self) -> int:
        """Pixels per latent token along each side."""
        return self.encoder.downsampling

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w) of one image's latents."""
        side = self.config.image_size // self.downsampling
        return self.config.codebook_dim, side, side

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
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(f"expected images (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
        if images.shape[2] % self.downsampling or images.shape[3] % self.downsampling:
            raise ValueError(f"image sides must be multiples of {self.downsampling}, got {tuple(images.shape[2:])}")
        latents = self.encoder(images)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def encode_codes(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> codes (B, h, w) int64."""
        return self.bottleneck.encode(self.encode(images).latents)

    @apply_forward_hook
    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Latents (B, D, h, w) -> `.quantized` (straight-through), `.codes`, `.losses`, `.usage`, `.perplexity`."""
        return self.bottleneck(latents)

    @apply_forward_hook
    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Quantises latents (B, D, h, w), with a straight-through gradient, then decodes: `.sample` (B, C, H, W)."""
        rows = self.bottleneck.lookup(self.bottleneck.encode(latents))
        sample = self.decoder(straight_through(rows, latents).to(self.dtype))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) int64 -> images (B, C, H, W), about [-1, 1]."""
        return self.decoder(self.bottleneck.lookup(codes).to(self.dtype))

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Images (B, C, H, W) in [-1, 1] -> reconstruction, latents, codes, losses, counts, for training."""
        latents = self.encode(images).latents
        quantized = self.quantize(latents)
        return TokenizerOutput(
            reconstruction=self.decoder(quantized.quantized),
            latents=latents,
            codes=quantized.codes,
            losses=quantized.losses,
            counts=quantized.counts,
        )


def _own(network: str, own: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """A network's own arguments as far as they are given; those of the other network must not be."""
    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"network {network!r} has no {given[0]}; its own arguments are {', '.join(own)}")
    return {name: value for name, value in own.items() if value is not None}
