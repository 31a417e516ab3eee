"""VQTokenizer: images => latents => codes => images, loaded and saved in diffusers' folder format."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor

from tokenizer.loading.old_configs import refuse_old_arguments, with_network_options
from tokenizer.loading.safe_mixin import CompleteWeights
from tokenizer.loading.typed_decorators import apply_forward_hook, register_to_config
from tokenizer.networks import NetworkSizes, make_network
from tokenizer.quantizers import QuantizerOutput, make_quantizer


@dataclass
class EncoderOutput(BaseOutput):
    """Output of `VQTokenizer.encode`.

    Attributes:
        latents: (B, latent channels, h, w), before quantisation.
    """

    latents: Tensor


@dataclass
class DecoderOutput(BaseOutput):
    """Output of `VQTokenizer.decode`.

    Attributes:
        sample: images (B, C, H, W), about [-1, 1], not clamped.
    """

    sample: Tensor


@dataclass
class TokenizerOutput(BaseOutput):
    """Output of `VQTokenizer.forward`.

    Attributes:
        reconstruction: (B, C, H, W), about [-1, 1]. (2 B, C, H, W) while training a quantizer that decodes each batch
            twice: first from its `quantized` latents, then from its `sampled` ones.
        encoder_output: the encoder output, (B, encoder channels, h, w).
        latents: (B, latent channels, h, w), before quantisation.
        codes: (B, h, w) int64, or (B, h, w, depth); None for a continuous quantizer.
        losses: the quantizer's losses by name, not weighted.
        counts: (K,) int64, how often each row of the codebook was used in this batch; None for a continuous quantizer.
    """

    # Under mixed precision accelerate rebuilds the output from a dictionary, which needs the defaults.
    reconstruction: Tensor
    encoder_output: Tensor = None
    latents: Tensor = None
    codes: Tensor = None
    losses: dict[str, Tensor] = None
    counts: Tensor = None


class VQTokenizer(CompleteWeights, ModelMixin, ConfigMixin):
    """An image tokenizer: encoder, quantizer, decoder.

    Args:
        in_channels: C, the channels of the images.
        image_size: height and width of the images, in pixels; a multiple of `downsampling`.
        network: name of the encoder and decoder, one of `tokenizer.networks.NETWORKS`.
        quantizer: name of the quantizer, one of `tokenizer.quantizers.QUANTIZERS`.
        codebook_size: K, the number of codes; a continuous quantizer ignores it.
        codebook_dim: D, the channels of the decoder's input: the length of a code vector.
        hidden_channels: base width of encoder and decoder.
        num_residual_layers: residual layers in each stack of the encoder and of the decoder.
        network_options: the network's other options by name; those not given keep the network's defaults.
        quantizer_options: the quantizer's other options by name; those not given keep the quantizer's defaults.

    Attributes:
        codes_are_frozen: whether `freeze_codes` was called.

    Raises:
        ValueError: a size, name or option that cannot work.
    """

    _keep_in_fp32_modules = ["bottleneck"]  # noqa: RUF012 (diffusers reads this name on the class)
    _supports_gradient_checkpointing = True
    _result = "tokenizer"
    codes_are_frozen = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        image_size: int = 32,
        network: str = "conv",
        quantizer: str = "arc",
        codebook_size: int = 512,
        codebook_dim: int = 64,
        hidden_channels: int = 128,
        num_residual_layers: int = 2,
        network_options: dict[str, Any] | None = None,
        quantizer_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        build_quantizer = partial(make_quantizer, quantizer, codebook_size, codebook_dim, quantizer_options or {})
        with torch.device("meta"):
            encoder_channels = build_quantizer().encoder_channels
        sizes = NetworkSizes(
            in_channels, image_size, encoder_channels, codebook_dim, hidden_channels, num_residual_layers
        )
        build = make_network(network, sizes, network_options or {})
        # The order of these three fixes which initial weights a seed gives.
        self.encoder = build.make_encoder()
        # Not `self.quantizer`: diffusers answers that name with the constructor argument.
        self.bottleneck = build_quantizer()
        self.bottleneck.values_per_token = in_channels * self.encoder.downsampling**2
        if image_size < self.downsampling or image_size % self.downsampling:
            raise ValueError(f"image_size must be a multiple of {self.downsampling}, got {image_size}")
        self.decoder = build.make_decoder()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "VQTokenizer":
        """Load a tokenizer from its folder, from a run folder that holds one, or from a Hub id.

        Raises:
            ValueError: the folder holds something else, its config or weights are broken, or they do not fit each
                other.
        """
        refuse_old_arguments(kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def current_config(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Move the network options of a config from before `network_options` existed into it."""
        return with_network_options(config)

    @property
    def codebook(self) -> Tensor:
        """The code vectors as they are decoded, (K, D); of `product`, whose codes are parts of a token, (g K, D / g).

        Raises:
            ValueError: the quantizer is continuous.
        """
        return self.bottleneck.codebook

    @property
    def has_codes(self) -> bool:
        """Whether the quantizer is discrete; with a continuous one, every call that returns or takes codes raises."""
        return self.bottleneck.depth > 0

    @property
    def downsampling(self) -> int:
        """Pixels per token along each side."""
        return self.encoder.downsampling * self.bottleneck.downsampling

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(latent channels, h, w) of one image; most quantizers have D latent channels."""
        side = self.config.image_size // self.downsampling
        return self.bottleneck.latent_channels, side, side

    @property
    def code_shape(self) -> tuple[int, ...]:
        """(h, w) of one image's codes; (h, w, depth) for a quantizer with several codes per token."""
        depth = self.bottleneck.depth
        return self.latent_shape[1:] if depth == 1 else (*self.latent_shape[1:], depth)

    def freeze_codes(self) -> None:
        """Freeze encoder and quantizer, so that the decoder alone trains; priors stay valid.

        `forward` then decodes what `decode` would, in training as well, without losses of the quantizer.
        """
        self.codes_are_frozen = True
        self.encoder.requires_grad_(False)
        self.bottleneck.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VQTokenizer":
        """Set training or evaluation mode; encoder and quantizer stay in evaluation mode if they are frozen."""
        super().train(mode)
        if self.codes_are_frozen:
            self.encoder.eval()
            self.bottleneck.eval()
        return self

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Store fewer activations in the forward pass and recompute the others in the backward pass.

        Raises:
            ValueError: the network does not support it.
        """
        if not (self.encoder.supports_gradient_checkpointing or self.decoder.supports_gradient_checkpointing):
            raise ValueError(
                f"network {self.config.network!r} has no gradient checkpointing; leave it off, or take another network"
            )
        super().enable_gradient_checkpointing(gradient_checkpointing_func)

    # accelerate's offloading moves the model to the device in a hook around `forward`; this decorator makes the other
    # public methods call the hook too.
    @apply_forward_hook
    def encode(self, images: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[Tensor]:
        """Encode images (B, C, H, W) in [-1, 1]: `.latents` (B, latent channels, h, w), before quantisation."""
        latents = self.bottleneck.latents(self._encoder_output(images))
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def encode_codes(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) in [-1, 1] as codes (B, h, w) int64, or (B, h, w, depth)."""
        return self.bottleneck.encode(self.encode(images).latents)

    @apply_forward_hook
    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Quantise latents (B, D, h, w).

        Returns:
            `.quantized` (B, D, h, w) with a straight-through gradient, `.codes`, `.losses`, `.usage`, `.perplexity`.

        Raises:
            ValueError: the quantizer needs the whole encoder output, not only the latents.
        """
        if self.bottleneck.encoder_channels != self.bottleneck.latent_channels or self.bottleneck.downsampling > 1:
            raise ValueError(
                f"quantizer {self.config.quantizer!r} quantises what the encoder gives, of which latents are a part; "
                "call the tokenizer on images, or encode and decode"
            )
        return self.bottleneck(latents)

    @apply_forward_hook
    def decode(self, latents: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Quantise latents (B, D, h, w), straight-through, and decode them: `.sample` (B, C, H, W), about [-1, 1]."""
        sample = self.decoder(self.bottleneck.quantize_latents(latents).to(self.dtype))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @apply_forward_hook
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decode codes (B, h, w) int64, or (B, h, w, depth), to images (B, C, H, W), about [-1, 1]."""
        return self.decoder(self.bottleneck.lookup(codes).to(self.dtype))

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Encode, quantise and decode images (B, C, H, W) in [-1, 1], as a training step does."""
        if self.codes_are_frozen:
            return self._decode_frozen(images)
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

    def _decode_frozen(self, images: Tensor) -> TokenizerOutput:
        """Decode images with gradients of the decoder alone."""
        with torch.no_grad():
            encoder_output = self._encoder_output(images)
            latents = self.bottleneck.latents(encoder_output)
            codes = self.bottleneck.encode(latents) if self.has_codes else None
            # Looked up from these codes, so that they are searched once.
            quantized = self.bottleneck.quantize_latents(latents) if codes is None else self.bottleneck.lookup(codes)
        return TokenizerOutput(
            reconstruction=self.decoder(quantized.to(self.dtype)),
            encoder_output=encoder_output,
            latents=latents,
            codes=codes,
            losses={},
            counts=None if codes is None else self.bottleneck.counts_of(codes),
        )

    def _encoder_output(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) to the encoder output (B, encoder channels, h, w)."""
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(f"expected images (B, {self.config.in_channels}, H, W), got {tuple(images.shape)}")
        if images.shape[2] % self.downsampling or images.shape[3] % self.downsampling:
            raise ValueError(f"image sides must be multiples of {self.downsampling}, got {tuple(images.shape[2:])}")
        return self.encoder(images)
