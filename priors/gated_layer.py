"""The gated layer of a PixelCNN: vertical and horizontal stack, label -> both stacks.

The causal masks are written as padding: a convolution that must not see the current row or pixel is shifted by one, and
has no masked weights.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class GatedLayer(nn.Module):
    """One gated layer of the vertical stack (all rows above) and the horizontal stack (this row, to the left).

    `sees_itself=False` is mask A: the current position is hidden from both convolutions; True is mask B. Only
    the first layer (mask A) must hide the current row from the vertical stack; its output holds rows above only, so
    later layers (mask B) may read it.
    """

    def __init__(self, channels: int, kernel_size: int, num_classes: int, sees_itself: bool, dropout: float):
        super().__init__()
        reach = kernel_size // 2
        taps = reach + sees_itself
        self.vertical_pad = (reach, reach, reach, 0)
        self.horizontal_pad = (reach, 0, 0, 0)
        # With mask A the window ends one position earlier; `forward` cuts off the surplus of the output.
        self.vertical = nn.Conv2d(channels, 2 * channels, (taps, kernel_size))
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, taps))
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal_out = nn.Conv2d(channels, channels, 1)
        self.label = nn.Embedding(num_classes, 2 * channels)
        self.dropout = nn.Dropout(dropout)
        self.residual = sees_itself

    def forward(self, vertical: Tensor, horizontal: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both stacks (B, C, h, w) from both stacks (B, C, h, w) and labels (B,)."""
        height, width = vertical.shape[2:]
        condition = self.label(labels)[:, :, None, None]  # (B, 2C, 1, 1)
        above = self.vertical(pad(vertical, self.vertical_pad))[:, :, :height]  # (B, 2C, h, w)
        left = self.horizontal(pad(horizontal, self.horizontal_pad))[:, :, :, :width]
        joined = _gate(left + self.vertical_to_horizontal(above) + condition)
        out = self.horizontal_out(self.dropout(joined))
        return _gate(above + condition), horizontal + out if self.residual else out


def _gate(features: Tensor) -> Tensor:
    """Compute tanh(first half) sigmoid(second half) of the channels: (B, 2C, h, w) -> (B, C, h, w)."""
    value, gate = features.chunk(2, dim=1)
    return torch.tanh(value) * torch.sigmoid(gate)
