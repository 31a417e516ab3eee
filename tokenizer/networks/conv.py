"""The small convolutional encoder and decoder of the paper's MNIST and CIFAR-10 experiments; f = 2 or 4."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from tokenizer.networks.base import Decoder, Encoder, Network, NetworkSizes
from tokenizer.networks.transposed_conv import TransposedConv2d
from tokenizer.option_checks import check_layers


class ResidualLayer(nn.Module):
    """Compute relu(x) + conv1x1(relu(conv3x3(relu(x)))).

    The skip connection carries relu(x) and not x: the public weights were trained so.
    """

    def __init__(self, channels: int, residual_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, residual_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(residual_channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map features (B, hidden_channels, h, w) to features of the same shape."""
        hidden = relu(hidden)
        return hidden + self.conv2(relu(self.conv1(hidden)))


@dataclass(frozen=True)
class ConvSizes:
    """The sizes of the encoder and the decoder.

    Attributes:
        channels: C, the channels of the images.
        encoder_channels: channels of the encoder's output.
        decoder_channels: channels of the decoder's input.
        hidden_channels: width of the residual layers; even.
        residual_channels: width inside a residual layer.
        num_layers: residual layers in the encoder, and as many in the decoder.
        strided_layers: convolutions of stride 2, 1 or 2.

    Raises:
        ValueError: a size that cannot work.
    """

    channels: int
    encoder_channels: int
    decoder_channels: int
    hidden_channels: int
    residual_channels: int
    num_layers: int
    strided_layers: int

    def __post_init__(self):
        if min(self.channels, self.residual_channels) < 1 or self.num_layers < 0:
            raise ValueError(
                "in_channels and residual_channels must be at least 1 and num_residual_layers at least 0, got "
                f"{self.channels}, {self.residual_channels} and {self.num_layers}"
            )
        check_layers(num_residual_layers=self.num_layers)
        if self.hidden_channels < 2 or self.hidden_channels % 2:
            raise ValueError(f"hidden_channels must be even and at least 2, got {self.hidden_channels}")
        if self.strided_layers not in (1, 2):
            raise ValueError(f"strided_layers of network 'conv' is 1 or 2, got {self.strided_layers}")

    @property
    def downsampling(self) -> int:
        """f, the pixels per token along each side."""
        return 2**self.strided_layers

    @property
    def inner(self) -> dict[str, int]:
        """Kernel, stride and padding of the convolution between the first one and the residual layers."""
        kernel, stride = (4, 2) if self.strided_layers == 2 else (3, 1)
        return {"kernel_size": kernel, "stride": stride, "padding": 1}

    def residual(self) -> nn.Sequential:
        """Build a new stack of residual layers."""
        sizes = (self.hidden_channels, self.residual_channels)
        return nn.Sequential(*(ResidualLayer(*sizes) for _ in range(self.num_layers)))


class ConvEncoder(Encoder):
    """Images (B, C, H, W) in [-1, 1] => encoder output (B, encoder_channels, H / f, W / f)."""

    def __init__(self, sizes: ConvSizes):
        super().__init__()
        hidden = sizes.hidden_channels
        self.downsampling = sizes.downsampling
        self.conv_in = nn.Conv2d(sizes.channels, hidden // 2, 4, stride=2, padding=1)
        self.conv_down = nn.Conv2d(hidden // 2, hidden, **sizes.inner)
        self.conv_mid = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.residual = sizes.residual()
        self.conv_out = nn.Conv2d(hidden, sizes.encoder_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images: (B, C, H, W) => (B, encoder_channels, H / f, W / f)."""
        hidden = relu(self.conv_in(images))  # (B, hidden / 2, H / 2, W / 2)
        hidden = relu(self.conv_down(hidden))  # (B, hidden, H / f, W / f)
        hidden = self.residual(self.conv_mid(hidden))
        return self.conv_out(relu(hidden))


class ConvDecoder(Decoder):
    """Quantised latents (B, decoder_channels, h, w) => images (B, C, f h, f w)."""

    def __init__(self, sizes: ConvSizes):
        super().__init__()
        hidden = sizes.hidden_channels
        self.conv_in = nn.Conv2d(sizes.decoder_channels, hidden, 3, padding=1)
        self.residual = sizes.residual()
        self.conv_up = TransposedConv2d(hidden, hidden // 2, **sizes.inner)
        self.conv_out = TransposedConv2d(hidden // 2, sizes.channels, 4, stride=2, padding=1)

    @property
    def last_layer(self) -> nn.ConvTranspose2d:
        """The convolution that outputs the images."""
        return self.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """Decode quantised latents: (B, decoder_channels, h, w) => (B, C, f h, f w)."""
        hidden = relu(self.residual(self.conv_in(quantized)))  # (B, hidden, h, w)
        return self.conv_out(relu(self.conv_up(hidden)))


def make_conv(sizes: NetworkSizes, residual_channels: int = 32, strided_layers: int = 2) -> Network:
    """Check the sizes of network `conv`.

    Args:
        sizes: hidden_channels is even; encoder and decoder each have num_residual_layers residual layers.
        residual_channels: width inside a residual layer.
        strided_layers: convolutions of stride 2: 1 downsamples by 2, 2 by 4.

    Raises:
        ValueError: a size that cannot work.
    """
    own = ConvSizes(
        sizes.in_channels,
        sizes.encoder_channels,
        sizes.decoder_channels,
        sizes.hidden_channels,
        residual_channels,
        sizes.num_residual_layers,
        strided_layers,
    )
    return Network(partial(ConvEncoder, own), partial(ConvDecoder, own))
