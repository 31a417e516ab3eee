"""Log the numbers of a run by step, to metrics.jsonl and as TensorBoard events in tensorboard/."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from arcvq.compute.atomic_files import atomic_file
from arcvq.runs.named_scalars import NamedScalars, Terms

T = TypeVar("T")


class RunLog:
    """The log in a run folder, continued after `step` completed steps; only the main process has one.

    Lines that an interrupted run has logged after that step are dropped, because the run repeats those steps.
    """

    def __init__(self, folder: Path, step: int):
        self._lines = folder / "metrics.jsonl"
        if self._lines.exists():
            lines = self._lines.read_bytes().splitlines(keepends=True)
            with atomic_file(self._lines) as kept:
                kept.write_bytes(b"".join(line for line in lines if _step_of(line) <= step))
        self._events = SummaryWriter(folder / "tensorboard", purge_step=step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write one line, and one TensorBoard event per number."""
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
        """Write out the buffered events."""
        self._events.close()


def last_step(run: Path) -> int:
    """Return the last step in a run folder's log of numbers; 0 before the first."""
    log = run / "metrics.jsonl"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**14))
        lines = file.read().split(b"\n")[:-1]  # the last part is empty, or a line that is being written
    try:
        return json.loads(lines[-1])["step"]
    except (IndexError, ValueError, KeyError):
        return 0


class Means:
    """Means of the finite values of scalars since they were last read. Sums stay on the device until then.

    Args:
        device: where the scalars are.
    """

    def __init__(self, device: torch.device):
        self._sums = NamedScalars(torch.float32, device)
        self._counts = NamedScalars(torch.int32, device)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the sums and counts since the means were last read."""
        return {"sums": self._sums.by_name(), "counts": self._counts.by_name()}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore sums and counts."""
        self._sums.load(state.get("sums", {}))
        self._counts.load(state.get("counts", {}))

    def add(self, terms: Terms) -> None:
        """Add one value of each scalar."""
        self._sums.of(terms.names).add_(terms.values.nan_to_num(0, posinf=0, neginf=0))
        self._counts.of(terms.names).add_(terms.finite)

    def take(self) -> tuple[list[str], Tensor]:
        """Return the names and their means, NaN for a name without finite values, and start again from zero."""
        sums, counts = self._sums.by_name(), self._counts.by_name()
        names = sorted(sums)  # a resumed run adds them in another order
        means = torch.stack([sums[name] / counts[name] for name in names])
        self._sums.zero()
        self._counts.zero()
        return names, means


class LoaderClock:
    """Measures how much of the time the training waits for the next batch."""

    def __init__(self):
        self._restart()

    def _restart(self) -> None:
        self._started, self._waited, self._images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[T], images: int) -> Iterator[T]:
        """Yield the same batches, and count `images` for each."""
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
        """Return `loader_share` and `images_per_second` since the last call, and start again from zero."""
        elapsed = time.perf_counter() - self._started
        numbers = {"loader_share": self._waited / elapsed, "images_per_second": self._images / elapsed}
        self._restart()
        return numbers


def _step_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # a line cut off by a kill or a full disk
        return 1 << 62
