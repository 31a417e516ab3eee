"""The numbers of a run by step: metrics.jsonl, and TensorBoard events in tensorboard/."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from arcvq.compute.atomic_files import atomic_file

T = TypeVar("T")


class RunLog:
    """The log in a run folder, for the one process that writes, going on after `step` completed steps.

    What an interrupted run logged after that step is dropped: it is computed, and logged, again.
    """

    def __init__(self, folder: Path, step: int):
        self._lines = folder / "metrics.jsonl"
        if self._lines.exists():
            lines = self._lines.read_bytes().splitlines(keepends=True)
            with atomic_file(self._lines) as kept:
                kept.write_bytes(b"".join(line for line in lines if _step_of(line) <= step))
        self._events = SummaryWriter(folder / "tensorboard", purge_step=step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line, and one event per number."""
        try:
            with self._lines.open("a") as lines:
                lines.write(json.dumps({"step": step, **scalars}) + "\n")
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)
        except OSError as error:
            raise OSError(
                f"the log {self._lines} cannot be written: {error.strerror or error}; mend that and start the same "
                "command again: it goes on from the newest checkpoint"
            ) from error

    def close(self) -> None:
        """Writes out what is left."""
        self._events.close()


class Means:
    """Means of scalars since they were last taken, of those that are finite. They stay on the device until then."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What has been added up since the means were last taken, in groups."""
        return {"sums": self._sums, "counts": self._counts}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Goes on from what another one had added up."""
        self._sums, self._counts = dict(state.get("sums", {})), dict(state.get("counts", {}))

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Adds one value of each of these."""
        for name, value in scalars.items():
            value = value.detach().float()
            is_finite = value.isfinite()
            value = torch.where(is_finite, value, 0)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts[name] + is_finite if name in self._counts else is_finite.int()

    def take(self) -> tuple[list[str], Tensor]:
        """The names, and the mean of each over the values that were added, NaN of none; begins anew."""
        names = sorted(self._sums)  # after a resumption they came in another order
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        self._sums, self._counts = {}, {}
        return names, means


class LoaderClock:
    """How much of the time goes into waiting for the next batch."""

    def __init__(self):
        self._begin()

    def _begin(self) -> None:
        self._began, self._waited, self._images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[T], images: int) -> Iterator[T]:
        """The same batches; each counts for so many images."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - before
            self._images += images
            yield batch

    def take(self) -> dict[str, float]:
        """`loader_share` of the time since this was last asked, and `images_per_second` over it; begins anew."""
        passed = time.perf_counter() - self._began
        numbers = {"loader_share": self._waited / passed, "images_per_second": self._images / passed}
        self._begin()
        return numbers


def _step_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # left by a kill, or by a full disk
        return 1 << 62
