"""A transposed convolution whose bias gradient costs little in bfloat16 on CPUs."""

from typing import Any

import torch
from torch import Tensor, nn


class TransposedConv2d(nn.ConvTranspose2d):
    """torch's transposed convolution, with the gradient of its bias summed apart in bfloat16 on CPUs.

    oneDNN takes more than half as long for this one sum as for the two products of the backward pass. In float32 the
    sum stays oneDNN's, whose order rounds otherwise.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Map features (B, in_channels, h, w) to features (B, out_channels, stride h, stride w)."""
        if self.bias is None or hidden.device.type != "cpu":
            return super().forward(hidden)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        if dtype != torch.bfloat16:
            return super().forward(hidden)
        sizes = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        output = nn.functional.conv_transpose2d(hidden, self.weight, self.bias.detach(), *sizes)
        return _BiasGradient.apply(output, self.bias)


class _BiasGradient(torch.autograd.Function):
    """Return the output (B, C, h, w) of a convolution, and give its bias (C,), which is in it already, its gradient."""

    @staticmethod
    def forward(output: Tensor, bias: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.sum((0, 2, 3), dtype=torch.float32).to(ctx.dtype)
