"""The small convolutional encoder and decoder (METHOD: MNIST and CIFAR-10), downsampling by f, 2 or 4.

ConvEncoder: images (B, C, H, W) -> latents (B, D, H / f, W / f)
ConvDecoder: latents (B, D, h, w) -> images (B, C, f h, f w)
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import relu


class ResidualLayer(nn.Module):
    """relu(x) + conv1x1(relu(conv3x3(relu(x)))): the skip branch carries relu(x), as the published weights expect."""

    def __init__(self, channels: int, residual_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, residual_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(residual_channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, H, h, w) -> (B, H, h, w)."""
        hidden = relu(hidden)
        return hidden + self.conv2(relu(self.conv1(hidden)))


@dataclass(frozen=True)
class ConvSizes:
    """Of encoder and decoder alike.

    Attributes:
        channels: C, the images'.
        encoder_channels: of what the encoder gives.
        decoder_channels: of what the decoder takes.
        hidden_channels: H.
        residual_channels: inner width of a residual layer.
        num_layers: residual layers.
        strided_layers: convolutions of stride 2, 1 or 2.
    """

    channels: int
    encoder_channels: int
    decoder_channels: int
    hidden_channels: int
    residual_channels: int
    num_layers: int
    strided_layers: int

    @property
    def downsampling(self) -> int:
        """f."""
        return 2**self.strided_layers

    @property
    def inner(self) -> dict[str, int]:
        """Kernel, stride and padding of the convolution next to the residual layers."""
        kernel, stride = (4, 2) if self.strided_layers == 2 else (3, 1)
        return {"kernel_size": kernel, "stride": stride, "padding": 1}

    def residual(self) -> nn.Sequential:
        """The residual layers, anew."""
        sizes = (self.hidden_channels, self.residual_channels)
        return nn.Sequential(*(ResidualLayer(*sizes) for _ in range(self.num_layers)))


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> latents (B, D, H / f, W / f)."""

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
        """(B, C, H, W) -> (B, D, H / f, W / f)."""
        hidden = relu(self.conv_in(images))  # (B, H/2, H / 2, W / 2)
        hidden = relu(self.conv_down(hidden))  # (B, H, H / f, W / f)
        hidden = self.residual(self.conv_mid(hidden))
        return self.conv_out(relu(hidden))


class ConvDecoder(nn.Module):
    """Quantized latents (B, D, h, w) -> images (B, C, f h, f w)."""

    def __init__(self, sizes: ConvSizes):
        super().__init__()
        hidden = sizes.hidden_channels
        self.conv_in = nn.Conv2d(sizes.decoder_channels, hidden, 3, padding=1)
        self.residual = sizes.residual()
        self.conv_up = nn.ConvTranspose2d(hidden, hidden // 2, **sizes.inner)
        self.conv_out = nn.ConvTranspose2d(hidden // 2, sizes.channels, 4, stride=2, padding=1)

    @property
    def last_layer(self) -> nn.ConvTranspose2d:
        """The convolution that makes the images."""
        return self.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, f h, f w)."""
        hidden = relu(self.residual(self.conv_in(quantized)))  # (B, H, h, w)
        return self.conv_out(relu(self.conv_up(hidden)))


def conv_sizes(
    channels: int,
    encoder_channels: int,
    decoder_channels: int,
    hidden_channels: int,
    num_layers: int,
    residual_channels: int = 32,
    strided_layers: int = 2,
) -> ConvSizes:
    """The sizes from VQTokenizer's arguments.

    Raises:
        ValueError: a size that cannot work.
    """
    if min(channels, residual_channels) < 1 or num_layers < 0:
        raise ValueError(
            "in_channels and residual_channels must be at least 1 and num_residual_layers at least 0, got "
            f"{channels}, {residual_channels} and {num_layers}"
        )
    if hidden_channels < 2 or hidden_channels % 2:
        raise ValueError(f"hidden_channels must be even and at least 2, got {hidden_channels}")
    if strided_layers not in (1, 2):
        raise ValueError(f"strided_layers of network 'conv' is 1 or 2, got {strided_layers}")
    sizes = (channels, encoder_channels, decoder_channels, hidden_channels)
    return ConvSizes(*sizes, residual_channels, num_layers, strided_layers)
