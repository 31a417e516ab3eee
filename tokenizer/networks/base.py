"""The contract of a network: an encoder, a decoder, and a function that builds both from the same sizes.

Shapes, with the encoder's downsampling f:

    encoder: images (B, in_channels, H, W) in [-1, 1] => encoder output (B, encoder_channels, H / f, W / f)
    decoder: quantised latents (B, decoder_channels, h, w) => images (B, in_channels, f h, f w), about [-1, 1]
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes that every network is given.

    Attributes:
        in_channels: C, the channels of the images.
        image_size: height and width of the images, in pixels.
        encoder_channels: channels of the encoder's output; the quantizer sets them.
        decoder_channels: channels of the decoder's input, the quantised latents.
        hidden_channels: base width of the network.
        num_residual_layers: residual layers in a stack; each network says where its stacks are.
    """

    in_channels: int
    image_size: int
    encoder_channels: int
    decoder_channels: int
    hidden_channels: int
    num_residual_layers: int


class Encoder(nn.Module, ABC):
    """Images => encoder output.

    Attributes:
        downsampling: f, the pixels per token along each side.
        supports_gradient_checkpointing: whether a submodule obeys diffusers' `gradient_checkpointing` switch.
    """

    downsampling: int
    supports_gradient_checkpointing: bool = False

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, in_channels, H, W) => (B, encoder_channels, H / f, W / f)."""


class Decoder(nn.Module, ABC):
    """Quantised latents => images.

    Attributes:
        supports_gradient_checkpointing: whether a submodule obeys diffusers' `gradient_checkpointing` switch.
    """

    supports_gradient_checkpointing: bool = False

    @property
    @abstractmethod
    def last_layer(self) -> nn.Module:
        """The layer that outputs the images; its `weight` balances adversarial and reconstruction gradients."""

    @abstractmethod
    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, in_channels, f h, f w)."""


class Network(NamedTuple):
    """Build a network's two halves.

    They are built one by one, because the tokenizer draws the codebook after the encoder's weights and before the
    decoder's; another order would change the initial weights of every seed.
    """

    make_encoder: Callable[[], Encoder]
    make_decoder: Callable[[], Decoder]
