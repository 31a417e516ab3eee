"""Report a run while it trains: a progress bar and warnings on the terminal, means in the log."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from arcvq.runs.log import LoaderClock, Means, RunLog
from arcvq.runs.named_scalars import Terms


class RunReport:
    """The report of one run. Every process has one; the main process shows and writes it.

    Args:
        accelerator: of the run.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._means = Means(accelerator.device)
        self._counters: dict[str, Tensor] = {}
        self._log: RunLog | None = None

    def open(self, folder: Path, step: int, total: int) -> None:
        """Open the log in a run's folder and the progress bar, after `step` of `total` steps."""
        is_main = self._accelerator.is_main_process
        self._log = RunLog(folder, step) if is_main else None
        self._bar = tqdm(total=total, initial=step, desc=folder.name, disable=not is_main)
        self._clock = LoaderClock()

    def close(self) -> None:
        """Close the bar and the log."""
        self._bar.close()
        if self._log is not None:
            self._log.close()

    def timed(self, batches: Iterable[dict[str, Tensor]], images: int) -> Iterator[dict[str, Tensor]]:
        """Yield the same batches of `images` images each, and count the time until each one as the loader's."""
        return self._clock.timed(batches, images)

    def add(self, terms: Terms) -> None:
        """Add scalars to the means of the next line."""
        self._means.add(terms)

    def counter(self, name: str, size: int) -> Tensor:
        """Return a tensor of counts, int64 (size,), that this process adds to; checkpoints store it."""
        if name not in self._counters:
            self._counters[name] = torch.zeros(size, dtype=torch.int64, device=self._accelerator.device)
        return self._counters[name]

    def step(self) -> None:
        """Advance the bar by one step."""
        self._bar.update()

    def line(self, step: int, **numbers: float) -> None:
        """Write the means over steps and processes, and `numbers`; every process calls this."""
        names, means = self._means.take()
        by_name = dict(zip(names, self._accelerator.reduce(means, "mean").tolist(), strict=True))
        by_name = {name: value for name, value in by_name.items() if isfinite(value)}
        times = self._clock.take()
        self.write(step, {**by_name, **numbers, **times})
        shown = {name: f"{value:.3g}" for name, value in by_name.items()}
        self._bar.set_postfix(shown | {"loader": f"{times['loader_share']:.0%}"})

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write numbers to the log."""
        if self._log is not None:
            self._log.write(step, scalars)

    def warn(self, message: str) -> None:
        """Print a warning above the bar, on the main process."""
        if self._accelerator.is_main_process:
            tqdm.write(f"warning: {message}", file=sys.stderr)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return this process's sums and counters, in groups."""
        return self._means.state() | {"tallies": self._counters}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore sums and counters."""
        self._means.load_state(state)
        self._counters = dict(state.get("tallies", {}))
