"""The networks of a training, by the part that they play in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class TrainingParts:
    """The networks of a training, from which a dry run counts parameters and memory.

    Attributes:
        trained: networks with gradients, by name.
        frozen: networks without gradients, by name.
        averages: copies of a trained network that hold the average of its weights.
    """

    trained: dict[str, nn.Module]
    frozen: dict[str, nn.Module]
    averages: Sequence[nn.Module]
