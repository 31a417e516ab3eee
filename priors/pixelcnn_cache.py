"""Incremental logits of a PixelCNN, every activation computed once: codes so far -> logits of the next position.

The vertical stack of a row depends only on the rows above, so it is computed when the row begins. The horizontal stack
advances one position at a time. Each layer keeps as many earlier rows and positions as its kernel reaches back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from priors.gated_layer import GatedLayer

# Matrix products of few rows use other kernels, which round differently. Batches are padded to this many rows, so that
# a sample is the same in a batch of any size; 8 are enough on the CPUs that were tried.
FEWEST_ROWS = 16


class PixelCNNCache:
    """State of one batch of grids during sampling.

    Call `begin_row`, then for each column `logits` and `append`; then the next row.

    Args:
        layers: the model's gated layers, in evaluation mode; all weights are read once, here.
        embedding: the model's embedding of codes.
        head: the model's 1 x 1 convolutions from the last layer to the logits.
        labels: (B,) int64.
        width: width of the grid.
        compile: compile a position's step with torch.compile, for this shape alone.
    """

    def __init__(
        self,
        layers: Sequence[GatedLayer],
        embedding: nn.Embedding,
        head: nn.Sequential,
        labels: Tensor,
        width: int,
        compile: bool = False,
    ):
        self._embedding = embedding
        self._horizontal = _HorizontalWeights(layers, head)
        self._vertical = [_VerticalWeights(layer) for layer in layers]
        self._batch, num_layers, channels = len(labels), len(layers), embedding.embedding_dim
        batch = max(self._batch, FEWEST_ROWS)
        labels = torch.cat([labels, labels.new_zeros(batch - len(labels))])
        self._reach = layers[0].horizontal_pad[0]
        zeros = embedding.weight.new_zeros
        # Contribution of the label to every gate, for horizontal gates with all constants: (B, 2C, 1, 1).
        self._above_condition = [layer.label(labels)[:, :, None, None] for layer in layers]
        self._left_condition = [
            ((condition[:, :, 0, 0] + bias) * _tanh_scale(condition))[:, :, None, None]
            for condition, bias in zip(self._above_condition, self._horizontal.left_bias, strict=True)
        ]
        self._rows = [zeros(batch, channels, self._reach, width)]  # the inputs of each layer, from the rows above
        self._rows += [zeros(batch, channels, 1, width) for _ in range(num_layers - 1)]
        self._conditions = zeros(width, num_layers, batch, 2 * channels)
        self._embedded = zeros(batch, self._reach + width, channels)  # this row's codes, behind the padding
        self._stack, gates = zeros(num_layers, batch, channels), zeros(num_layers, batch, 2 * channels)
        self._begun = False
        views = None if compile else _views(self._stack, gates)  # a compiled function creates them at no cost

        def step(conditions: Tensor, recent: Tensor) -> Tensor:
            return _step(self._horizontal, conditions, recent, self._stack, gates, views or _views(self._stack, gates))

        self._step = torch.compile(step, dynamic=False) if compile else step

    def begin_row(self) -> None:
        """Compute the vertical stack of the next row, and clear the horizontal one."""
        if self._begun:
            # Append the completed row to the input of the first layer.
            row = self._embedded[:, self._reach :].movedim(2, 1)[:, :, None]  # (B, C, 1, w)
            self._rows[0] = torch.cat([self._rows[0], row], dim=2)[:, :, 1:]
        self._begun = True
        vertical: Tensor | None = None
        for index, weights in enumerate(self._vertical):
            inputs = self._rows[index]
            if vertical is not None:
                inputs = torch.cat([inputs, vertical], dim=2)
                self._rows[index] = vertical
            # Channels last, so that the channels of a column are contiguous for the horizontal stack.
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            above = conv2d(inputs, weights.above, weights.above_bias, padding=(0, weights.reach))  # (B, 2C, 1, w)
            condition = conv2d(above, weights.to_horizontal, weights.to_horizontal_bias)
            self._conditions[:, index] = condition.add_(self._left_condition[index])[:, :, 0].permute(2, 0, 1)
            value, gate = above.add_(self._above_condition[index]).chunk(2, dim=1)
            vertical = torch.tanh(value).mul_(torch.sigmoid(gate))  # (B, C, 1, w)
        self._stack.copy_(self._horizontal.empty[:, None])

    def logits(self, column: int) -> Tensor:
        """Compute logits (B, K) at this column of the row; all codes before it must have been appended."""
        recent = self._embedded[:, column : column + self._reach].flatten(1)  # (B, reach C)
        return self._step(self._conditions[column], recent)[: self._batch]

    def append(self, column: int, codes: Tensor) -> None:
        """Append the codes (B,) of this column."""
        self._embedded[: self._batch, self._reach + column] = self._embedding(codes)


def _tanh_scale(gates: Tensor) -> Tensor:
    """Return (2C,): 1 for the values, 1 / 2 for the gates (B, 2C, ...), as sigmoid(x) is (1 + tanh(x / 2)) / 2."""
    scale = gates.new_ones(gates.shape[1])
    scale[len(scale) // 2 :] = 0.5
    return scale


class _VerticalWeights:
    """Weights of a layer's vertical stack, in the memory layout of its rows."""

    def __init__(self, layer: GatedLayer):
        self.reach = layer.vertical_pad[0]
        self.above = layer.vertical.weight.contiguous(memory_format=torch.channels_last)
        self.above_bias = layer.vertical.bias
        scale = _tanh_scale(layer.vertical_to_horizontal.weight)
        self.to_horizontal = layer.vertical_to_horizontal.weight * scale[:, None, None, None]
        self.to_horizontal_bias = layer.vertical_to_horizontal.bias * scale


class _HorizontalWeights:
    """Weights of the horizontal stack and the head as matrices (in, out).

    Two transformations reduce a layer to four calls. Because sigmoid(x) = (1 + tanh(x / 2)) / 2, one tanh serves both
    halves of a gate. And the stack is kept without the biases of `horizontal_out`: their sum up to a layer is a
    constant, which the bias of the next convolution absorbs.
    """

    def __init__(self, layers: Sequence[GatedLayer], head: nn.Sequential):
        first, *others = layers
        scale = _tanh_scale(first.horizontal.weight.transpose(0, 1))
        biases = torch.stack([layer.horizontal_out.bias for layer in layers]).cumsum(dim=0)  # (L, C)
        # (2C, C, 1, taps) -> (taps C, 2C): the order in which the codes of a row lie in memory.
        self.first = first.horizontal.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1) * scale
        taps = [layer.horizontal.weight[:, :, 0].permute(2, 1, 0) * scale for layer in others]  # (2, C, 2C)
        self.before = torch.stack([before for before, _ in taps]) if taps else None  # (L - 1, C, 2C)
        self.here = [here.contiguous() for _, here in taps]
        self.out = [(layer.horizontal_out.weight[:, :, 0, 0].T / 2).contiguous() for layer in layers]
        self.left_bias = [first.horizontal.bias] + [
            layer.horizontal.bias + layer.horizontal.weight[:, :, 0].sum(dim=2) @ bias
            for layer, bias in zip(others, biases, strict=False)
        ]
        self.empty, self.last_bias = -biases, biases[-1]  # empty: the stack's zeros left of the grid
        hidden, logits = head[0], head[2]
        self.hidden, self.hidden_bias = hidden.weight[:, :, 0, 0].T.contiguous(), hidden.bias
        self.logits, self.logits_bias = logits.weight[:, :, 0, 0].T.contiguous(), logits.bias


def _views(stack: Tensor, gates: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return for each layer its state (B, C), its gates (B, 2C), and the two halves of the gates."""
    return [(state, gate, *gate.chunk(2, dim=1)) for state, gate in zip(stack, gates, strict=True)]


def _step(
    weights: _HorizontalWeights,
    conditions: Tensor,
    recent: Tensor,
    stack: Tensor,
    gates: Tensor,
    views: list[tuple[Tensor, Tensor, Tensor, Tensor]],
) -> Tensor:
    """Compute one position: advance the stack (L, B, C) in place, and return logits (B, K).

    `conditions` (L, B, 2C) come from the rows above and the label, `recent` (B, reach C) from the codes before; `gates`
    (L, B, 2C) are overwritten, and `views` are their `_views`.
    """
    torch.addmm(conditions[0], recent, weights.first, out=gates[0])
    if weights.before is not None:
        # Contribution of the previous position to all layers, while the stack still holds it.
        torch.baddbmm(conditions[1:], stack[:-1], weights.before, out=gates[1:])
    before: Tensor | None = None
    for index, (state, gate, value, doubled) in enumerate(views):
        if before is not None:
            gate.addmm_(before, weights.here[index - 1])
        gate.tanh_()
        gated = torch.addcmul(value, value, doubled)
        if before is None:
            torch.mm(gated, weights.out[0], out=state)
        else:
            torch.addmm(before, gated, weights.out[index], out=state)
        before = state
    hidden = torch.addmm(weights.hidden_bias, (before + weights.last_bias).relu_(), weights.hidden).relu_()
    return torch.addmm(weights.logits_bias, hidden, weights.logits)
