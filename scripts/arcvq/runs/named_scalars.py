"""Scalars by name in one vector, so that a step updates all of them with a few kernels and reads none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """Named scalars of one step.

    Attributes:
        names: n different names.
        values: (n,) float32.
    """

    names: tuple[str, ...]
    values: Tensor

    @classmethod
    def stack(cls, scalars: Mapping[str, Tensor]) -> "Terms":
        """Stack at least one scalar, without its gradient."""
        return cls(tuple(scalars), torch.stack([value.detach().float() for value in scalars.values()]))

    @cached_property
    def finite(self) -> Tensor:
        """Whether each value is finite, bool (n,)."""
        return self.values.abs() < torch.inf  # two kernels; isfinite() takes four

    def by_name(self) -> dict[str, Tensor]:
        """Return the scalars."""
        return dict(zip(self.names, self.values.unbind(), strict=True))

    def __or__(self, others: "Terms") -> "Terms":
        """Join two steps' scalars of different names."""
        return Terms(self.names + others.names, torch.cat([self.values, others.values]))


class NamedScalars:
    """A state of one scalar per name, 0 before the first use of a name.

    The names in use are one vector. Others wait, each by itself, until they are in use again.

    Args:
        dtype: of the scalars.
        device: where they are.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._names: tuple[str, ...] = ()
        self._vector = torch.zeros(0, dtype=dtype, device=device)
        self._waiting: dict[str, Tensor] = {}

    def of(self, names: Sequence[str]) -> Tensor:
        """Return the scalars of these names, (n,), to be changed in place before the next call."""
        names = tuple(names)
        if names != self._names:
            scalars = self.by_name()
            self._vector = torch.stack([scalars.pop(name, self._vector.new_zeros(())) for name in names])
            self._names, self._waiting = names, scalars
        return self._vector

    @property
    def names(self) -> list[str]:
        """The names of all scalars."""
        return [*self._waiting, *self._names]

    def zero(self) -> None:
        """Set all scalars to 0, in place."""
        self._vector.zero_()
        self._waiting = {}

    def by_name(self) -> dict[str, Tensor]:
        """Return a copy of all scalars."""
        return self._waiting | dict(zip(self._names, self._vector.clone().unbind(), strict=True))

    def load(self, scalars: Mapping[str, Tensor]) -> None:
        """Replace all scalars by these."""
        self._names, self._vector = (), self._vector[:0]
        self._waiting = {name: scalar.to(self._vector) for name, scalar in scalars.items()}


def means_of(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Compute the mean of each scalar over the parts of a batch, which have the same names."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: torch.stack([scalars[name] for scalars in parts]).mean() for name in parts[0]}
