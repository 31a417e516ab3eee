"""A PixelCNN's logits position after position, every activation computed once: codes so far -> logits of the next one.

The vertical stack of a row depends on the rows above alone, so all of it is computed when the row begins. The
horizontal stack goes on by one position at a time. Besides the row it works on, each layer keeps the one row, or the
one position, that the convolutions of the next ones reach back to; the first layer keeps three.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import conv2d

if TYPE_CHECKING:
    from priors.pixelcnn import PixelCNN


class PixelCNNCache:
    """What one batch of grids needs while it is sampled.

    Call `begin_row`, then for each column `logits` and `append`; then the next row.

    Args:
        model: in evaluation mode; its weights are read once, here.
        labels: (B,) int64.
        width: of the grid.
        compile: the step of a position through torch.compile, for this shape alone.
    """

    def __init__(self, model: "PixelCNN", labels: Tensor, width: int, compile: bool = False):
        self._model, self._width = model, width
        self._weights = _HorizontalWeights(model)
        self._step = torch.compile(_step, dynamic=False) if compile else _step
        batch, layers, channels = len(labels), model.config.num_layers, model.config.channels
        self._reach = model.layers[0].horizontal_pad[0]
        zeros = model.embedding.weight.new_zeros
        # The label's share of every gate, and of the horizontal gates also the biases: (B, 2C, 1, 1).
        self._above_condition = [layer.label(labels)[:, :, None, None] for layer in model.layers]
        self._left_condition = [
            condition + bias[:, None, None]
            for condition, bias in zip(self._above_condition, self._weights.left_bias, strict=True)
        ]
        self._rows = [zeros(batch, channels, self._reach, width)]  # the inputs of each layer, from the rows above
        self._rows += [zeros(batch, channels, 1, width) for _ in range(layers - 1)]
        self._conditions = zeros(width, layers, batch, 2 * channels)
        self._embedded = zeros(batch, self._reach + width, channels)  # this row's codes, after what pads it
        self._stack = zeros(layers, batch, channels)
        self._begun = False

    def begin_row(self) -> None:
        """Computes the vertical stack of the next row, and empties the horizontal one."""
        if self._begun:
            # The row that is complete joins the rows that the first layer sees.
            row = self._embedded[:, self._reach :].movedim(2, 1)[:, :, None]  # (B, C, 1, w)
            self._rows[0] = torch.cat([self._rows[0], row], dim=2)[:, :, 1:]
        self._begun = True
        vertical: Tensor | None = None
        for index, layer in enumerate(self._model.layers):
            seen = self._rows[index]
            if vertical is not None:
                seen = torch.cat([seen, vertical], dim=2)
                self._rows[index] = vertical
            weight, bias = layer.vertical.weight, layer.vertical.bias
            above = conv2d(seen, weight, bias, padding=(0, layer.vertical_pad[0]))  # (B, 2C, 1, w)
            condition = layer.vertical_to_horizontal(above) + self._left_condition[index]
            self._conditions[:, index] = condition[:, :, 0].permute(2, 0, 1) * self._weights.scale
            value, gate = (above + self._above_condition[index]).chunk(2, dim=1)
            vertical = torch.tanh(value) * torch.sigmoid(gate)  # (B, C, 1, w)
        self._stack.copy_(self._weights.empty[:, None])

    def logits(self, column: int) -> Tensor:
        """Logits (B, K) at this column of the row, of whose codes all before it have been appended."""
        recent = self._embedded[:, column : column + self._reach].flatten(1)  # (B, reach C)
        return self._step(self._weights, self._conditions[column], recent, self._stack)

    def append(self, column: int, codes: Tensor) -> None:
        """Takes in the codes (B,) of this column."""
        self._embedded[:, self._reach + column] = self._model.embedding(codes)


class _HorizontalWeights:
    """The weights of the horizontal stack and the head as matrices, (in, out).

    Two things are moved into the weights, so that a layer is four calls: sigmoid(x) = (1 + tanh(x / 2)) / 2 makes both
    halves of a gate a tanh; and the stack is kept without the biases of `horizontal_out`, whose sum up to a layer is a
    constant that the next convolution's bias takes up.
    """

    def __init__(self, model: "PixelCNN"):
        channels = model.config.channels
        halves = model.embedding.weight.new_ones(2 * channels)
        halves[channels:] = 0.5
        first, *others = model.layers
        biases = torch.stack([layer.horizontal_out.bias for layer in model.layers]).cumsum(dim=0)  # (L, C)
        self.scale = halves
        # (2C, C, 1, taps) -> (taps C, 2C): the order in which the codes of a row lie in memory.
        self.first = first.horizontal.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1) * halves
        taps = [layer.horizontal.weight[:, :, 0].permute(2, 1, 0) * halves for layer in others]  # (2, C, 2C)
        self.before = torch.stack([before for before, _ in taps]) if taps else None  # (L - 1, C, 2C)
        self.here = [here.contiguous() for _, here in taps]
        self.out = [(layer.horizontal_out.weight[:, :, 0, 0].T / 2).contiguous() for layer in model.layers]
        self.left_bias = [first.horizontal.bias] + [
            layer.horizontal.bias + layer.horizontal.weight[:, :, 0].sum(dim=2) @ bias
            for layer, bias in zip(others, biases, strict=False)
        ]
        self.empty, self.last_bias = -biases, biases[-1]  # what stands for 0 left of the grid
        hidden, logits = model.head[0], model.head[2]
        self.hidden, self.hidden_bias = hidden.weight[:, :, 0, 0].T.contiguous(), hidden.bias
        self.logits, self.logits_bias = logits.weight[:, :, 0, 0].T.contiguous(), logits.bias


def _step(weights: _HorizontalWeights, conditions: Tensor, recent: Tensor, stack: Tensor) -> Tensor:
    """One position: the stack (L, B, C) goes from the position before to this one, in place -> logits (B, K).

    `conditions` (L, B, 2C) are the rows above and the label, `recent` (B, reach C) the codes before.
    """
    states = stack.unbind()
    gates = [torch.addmm(conditions[0], recent, weights.first)]
    if weights.before is not None:
        # What all layers take from the position before, while the stack still holds it.
        gates += torch.baddbmm(conditions[1:], stack[:-1], weights.before).unbind()
    for index, gate in enumerate(gates):
        if index:
            gate.addmm_(states[index - 1], weights.here[index - 1])
        value, doubled = gate.tanh_().chunk(2, dim=1)
        gated = torch.addcmul(value, value, doubled)
        if index:
            torch.addmm(states[index - 1], gated, weights.out[index], out=states[index])
        else:
            torch.mm(gated, weights.out[0], out=states[0])
    hidden = torch.addmm(weights.hidden_bias, (states[-1] + weights.last_bias).relu_(), weights.hidden).relu_()
    return torch.addmm(weights.logits_bias, hidden, weights.logits)
