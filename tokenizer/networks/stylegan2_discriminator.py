"""The discriminator of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958): images (B, C, H, W) => one logit each."""

from itertools import pairwise
from math import sqrt
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu, linear

from tokenizer.networks.discriminator_contract import Discriminator

_SLOPE = 0.2  # of the leaky ReLU for negative inputs
# Images whose spread the minibatch standard deviation takes together.
_GROUP = 4
# Added to the variance before the root (Karras et al. 2018).
_EPSILON = 1e-8
# Side of the features that the last layers take.
_LAST_SIDE = 4
# Side of the features from which on, towards smaller ones, the width is the largest.
_WIDEST_SIDE = 64


class EqualConv2d(nn.Conv2d):
    """A convolution with equalised learning rate: weights drawn from N(0, 1), scaled by 1 / sqrt(inputs) when used.

    Adam changes all weights by amounts of one size, whatever their scale (Karras et al. 2018, section 4.1).
    """

    def reset_parameters(self) -> None:
        """Draw the weights; biases are 0."""
        _initialise(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map features (B, in_channels, h, w) to features (B, out_channels, h', w')."""
        return self._conv_forward(hidden, self.weight / sqrt(self.weight[0].numel()), self.bias)


class EqualLinear(nn.Linear):
    """A linear layer with equalised learning rate, as `EqualConv2d`."""

    def reset_parameters(self) -> None:
        """Draw the weights; biases are 0."""
        _initialise(self)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map features (B, in_features) to features (B, out_features)."""
        return linear(hidden, self.weight / sqrt(self.in_features), self.bias)


class ResidualBlock(nn.Module):
    """Halve height and width: (skip(x) + two convolutions of x) / sqrt(2), with a blur before each stride of 2."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = EqualConv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = EqualConv2d(in_channels, out_channels, 3, stride=2)
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden: Tensor, kernel: Tensor) -> Tensor:
        """Map features (B, in_channels, h, w) to (B, out_channels, h / 2, w / 2); `kernel` is that of the blur."""
        skip = self.skip(blur(hidden, kernel, padding=1, stride=2))
        hidden = activation(self.conv1(hidden))
        return (skip + activation(self.conv2(blur(hidden, kernel, padding=2)))) / sqrt(2)


class StyleGAN2Discriminator(Discriminator):
    """Classify whole images as real (high logit) or reconstructed.

    A 1 x 1 convolution; residual blocks that halve the sides down to 4; the minibatch standard deviation as a further
    channel; a convolution and two linear layers. The width is `max_channels` for features of side 64 and below, and
    halves with each doubling of the side.

    The minibatch standard deviation is over four images that follow each other, so the logit of an image depends on
    three others: any split of a batch into multiples of four, over processes or accumulation, gives the same training.
    Less than four images are one group, within one process; of a single image the deviation is a constant.

    Args:
        in_channels: C, the channels of the images.
        image_size: side of the images in pixels, a power of two from 16 on.
        max_channels: width of the layers at sides of 64 and less.

    Raises:
        ValueError: a size that cannot work.
    """

    kernel: Tensor

    def __init__(self, in_channels: int, image_size: int, max_channels: int = 512):
        super().__init__()
        if image_size < 16 or image_size & (image_size - 1):
            raise ValueError(
                "adversarial.discriminator stylegan2 takes images whose side is a power of two from 16 on, got "
                f"{image_size}; set data.image_size, or take adversarial.discriminator patch"
            )
        if max_channels * _WIDEST_SIDE < image_size:
            raise ValueError(
                f"adversarial.max_channels must be at least {-(-image_size // _WIDEST_SIDE)} for images of "
                f"{image_size} pixels, got {max_channels}"
            )
        self.image_size = image_size
        halvings = (image_size // _LAST_SIDE).bit_length() - 1
        sides = [image_size >> index for index in range(halvings + 1)]
        widths = [min(max_channels, max_channels * _WIDEST_SIDE // side) for side in sides]
        self.conv_in = EqualConv2d(in_channels, widths[0], 1)
        self.blocks = nn.Sequential(*(ResidualBlock(*pair) for pair in pairwise(widths)))
        self.conv_out = EqualConv2d(max_channels + 1, max_channels, 3, padding=1)
        self.hidden = EqualLinear(max_channels * _LAST_SIDE**2, max_channels)
        self.out = EqualLinear(max_channels, 1)
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        # Not among the weights: it is a constant.
        self.register_buffer("kernel", row.outer(row) / row.sum() ** 2, persistent=False)

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images of another size than `image_size`."""
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {height}x{width} do not fit the discriminator, which takes {self.image_size}x"
                f"{self.image_size}"
            )

    def check_batch(self, images: int) -> None:
        """Raise ValueError for more than four images that do not divide into groups of four."""
        if images > _GROUP and images % _GROUP:
            raise ValueError(
                f"adversarial.discriminator stylegan2 takes {_GROUP} images at a time, and {images} do not divide into "
                f"such groups: let optim.batch_size over processes and optim.accumulation be a multiple of {_GROUP}"
            )

    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, 1, 1, 1) of float32 images (B, C, H, W)."""
        hidden = activation(self.conv_in(images))
        for block in self.blocks:
            hidden = block(hidden, self.kernel)
        hidden = torch.cat([hidden, minibatch_deviation(hidden)], dim=1)
        hidden = activation(self.conv_out(hidden)).flatten(1)
        return rearrange(self.out(activation(self.hidden(hidden))), "b c -> b c 1 1")


def activation(hidden: Tensor) -> Tensor:
    """Compute the leaky ReLU times sqrt(2), which keeps the variance of features about equal."""
    return leaky_relu(hidden, _SLOPE) * sqrt(2)


def blur(hidden: Tensor, kernel: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Convolve each channel of features (B, C, h, w) with a kernel (4, 4); `padding` zeros are on every side.

    With a stride of 2, h and w are even.
    """
    return _Blur.apply(hidden, kernel, padding, stride, False)


class _Blur(torch.autograd.Function):
    """Convolve each channel of features (B, C, h, w) with a constant kernel, or with `adjoint` apply the transpose.

    Each is the gradient of the other, to any order. torch's own second derivative of a convolution by channels takes
    one channel after the other, for a gradient of the kernel that nothing needs.
    """

    @staticmethod
    def forward(hidden: Tensor, kernel: Tensor, padding: int, stride: int, adjoint: bool) -> Tensor:
        each = repeat(kernel, "h w -> c 1 h w", c=hidden.shape[1])
        convolve = conv_transpose2d if adjoint else conv2d
        return convolve(hidden, each, stride=stride, padding=padding, groups=len(each))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int, bool], output: Tensor) -> None:
        _, kernel, *ctx.sizes, ctx.adjoint = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        hidden = _Blur.apply(gradient, *ctx.saved_tensors, *ctx.sizes, not ctx.adjoint)
        return hidden, None, None, None, None


def minibatch_deviation(hidden: Tensor) -> Tensor:
    """Compute how much images differ: (B, C, h, w) => (B, 1, h, w) (Karras et al. 2018, arXiv 1710.10196, section 3).

    It is the standard deviation of each feature over a group of images, averaged over all features, at every position.
    """
    groups = rearrange(hidden, "(n group) c h w -> n group c h w", group=min(_GROUP, len(hidden)))
    deviation = (groups.var(dim=1, correction=0) + _EPSILON).sqrt().mean(dim=(1, 2, 3))  # (n,)
    height, width = hidden.shape[-2:]
    return repeat(deviation, "n -> (n group) 1 h w", group=groups.shape[1], h=height, w=width)


def _initialise(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw a layer's weights from N(0, 1), and set its biases to 0."""
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
