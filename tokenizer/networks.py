"""The small convolutional encoder and decoder (METHOD: MNIST and CIFAR-10), downsampling by 4.

ConvEncoder: images (B, C, H, W) -> latents (B, D, H / 4, W / 4)
ConvDecoder: latents (B, D, h, w) -> images (B, C, 4 h, 4 w)
"""

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


class ConvEncoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> latents (B, D, H / 4, W / 4)."""

    downsampling = 4

    def __init__(
        self, in_channels: int, latent_channels: int, hidden_channels: int, residual_channels: int, num_layers: int
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, hidden_channels // 2, 4, stride=2, padding=1)
        self.conv_down = nn.Conv2d(hidden_channels // 2, hidden_channels, 4, stride=2, padding=1)
        self.conv_mid = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1)
        self.residual = nn.Sequential(*(ResidualLayer(hidden_channels, residual_channels) for _ in range(num_layers)))
        self.conv_out = nn.Conv2d(hidden_channels, latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, H / 4, W / 4)."""
        hidden = relu(self.conv_in(images))  # (B, H/2, H / 2, W / 2)
        hidden = relu(self.conv_down(hidden))  # (B, H, H / 4, W / 4)
        hidden = self.residual(self.conv_mid(hidden))
        return self.conv_out(relu(hidden))


class ConvDecoder(nn.Module):
    """Quantized latents (B, D, h, w) -> images (B, C, 4 h, 4 w)."""

    def __init__(
        self, out_channels: int, latent_channels: int, hidden_channels: int, residual_channels: int, num_layers: int
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, hidden_channels, 3, padding=1)
        self.residual = nn.Sequential(*(ResidualLayer(hidden_channels, residual_channels) for _ in range(num_layers)))
        self.conv_up = nn.ConvTranspose2d(hidden_channels, hidden_channels // 2, 4, stride=2, padding=1)
        self.conv_out = nn.ConvTranspose2d(hidden_channels // 2, out_channels, 4, stride=2, padding=1)

    @property
    def last_layer(self) -> nn.ConvTranspose2d:
        """The convolution that makes the images."""
        return self.conv_out

    def forward(self, quantized: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, 4 h, 4 w)."""
        hidden = relu(self.residual(self.conv_in(quantized)))  # (B, H, h, w)
        return self.conv_out(relu(self.conv_up(hidden)))


def conv_sizes(
    channels: int, latent_channels: int, hidden_channels: int, num_layers: int, residual_channels: int = 32
) -> tuple[int, int, int, int, int]:
    """The arguments of ConvEncoder and ConvDecoder from VQTokenizer's.

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
    return channels, latent_channels, hidden_channels, residual_channels, num_layers
