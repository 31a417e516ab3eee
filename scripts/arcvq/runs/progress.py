"""What a run says while it trains: a bar and warnings to look at, and lines of means in its log."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from arcvq.runs.log import LoaderClock, Means, RunLog


class RunReport:
    """The report of one run, on each of its processes; the main one shows and writes it.

    Args:
        accelerator: brings the processes together.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self._means = Means()
        self._tallies: dict[str, Tensor] = {}
        self._log: RunLog | None = None

    def open(self, folder: Path, step: int, total: int) -> None:
        """Begins, or goes on after `step` of `total` steps, in a run's folder."""
        is_main = self._accelerator.is_main_process
        self._log = RunLog(folder, step) if is_main else None
        self._bar = tqdm(total=total, initial=step, desc=folder.name, disable=not is_main)
        self._clock = LoaderClock()

    def close(self) -> None:
        """Ends the bar, and writes out what is left."""
        self._bar.close()
        if self._log is not None:
            self._log.close()

    def timed(self, batches: Iterable[dict[str, Tensor]], images: int) -> Iterator[dict[str, Tensor]]:
        """The same batches, each of so many images; the time until each one comes is the loader's."""
        return self._clock.timed(batches, images)

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Adds scalars to the means of the next line."""
        self._means.add(scalars)

    def counter(self, name: str, size: int) -> Tensor:
        """Counts, int64 (size,), of this process alone, to be added to."""
        if name not in self._tallies:
            self._tallies[name] = torch.zeros(size, dtype=torch.int64, device=self._accelerator.device)
        return self._tallies[name]

    def step(self) -> None:
        """Moves the bar on."""
        self._bar.update()

    def line(self, step: int, **numbers: float) -> None:
        """Writes the means over steps and processes, with these numbers; to be called by all processes."""
        names, means = self._means.take()
        by_name = dict(zip(names, self._accelerator.reduce(means, "mean").tolist(), strict=True))
        by_name = {name: value for name, value in by_name.items() if isfinite(value)}
        times = self._clock.take()
        self.write(step, {**by_name, **numbers, **times})
        shown = {name: f"{value:.3g}" for name, value in by_name.items()}
        self._bar.set_postfix(shown | {"loader": f"{times['loader_share']:.0%}"})

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes numbers to the log."""
        if self._log is not None:
            self._log.write(step, scalars)

    def warn(self, message: str) -> None:
        """Prints a warning above the bar."""
        if self._accelerator.is_main_process:
            tqdm.write(f"warning: {message}", file=sys.stderr)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What this process has added up for the next line, in groups."""
        return self._means.state() | {"tallies": self._tallies}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Goes on from what another one had added up."""
        self._means.load_state(state)
        self._tallies = dict(state.get("tallies", {}))
