"""Give every part of the GPU benchmark its device, sizes and time, and time its work."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arcvq.benchmarks.gpu.limits import Work, seconds_of
from arcvq.benchmarks.gpu.needs import needs_of
from arcvq.benchmarks.gpu.sizes import Sizes

# A part yields the names of its figures, each with the function that measures it.
Figures = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


class LeftOut(Exception):
    """A figure that cannot be had here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """The device, the sizes and the time of one part.

    Attributes:
        device: the device that is measured.
        sizes: how large everything is.
        ends: when the part's time is over, on time.monotonic's clock.
        folder: an empty folder, removed after the part.
    """

    device: torch.device
    sizes: Sizes
    ends: float
    folder: Path

    @property
    def is_cuda(self) -> bool:
        """Tell whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Seconds until the part's time is over."""
        return self.ends - time.monotonic()

    def figure(self, work: Work, items: int = 1, eager: Work | None = None) -> dict[str, Any]:
        """Time a work, and count what it needs.

        Args:
            work: what is timed.
            items: images, or tokens, of a run.
            eager: the same work, not compiled, whose needs are counted; None: `work` itself.
        """
        torch.manual_seed(0)
        needs = needs_of(eager or work)
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        timed = seconds_of(work, self.device, self.sizes.blocks)
        peak = torch.cuda.max_memory_allocated() if self.is_cuda else None
        return timed | {"items_per_s": items / timed["seconds"], "needs": needs, "peak_bytes": peak}

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess:
        """Run `python WORDS` in the part's folder for as long as there is time; return it with its output.

        Raises:
            RuntimeError: it failed; the message is its last line.
            subprocess.TimeoutExpired: the time did not suffice.
        """
        process = self.start(words)
        try:
            out, err = process.communicate(timeout=max(1.0, self.seconds_left))
        finally:
            process.kill()
        if process.returncode:
            raise RuntimeError(last_line(err or out) or f"status {process.returncode}")
        return subprocess.CompletedProcess(process.args, 0, out, err)

    def start(self, words: Sequence[str]) -> subprocess.Popen:
        """Start `python WORDS` in the part's folder, with its output in pipes."""
        options = {"cwd": self.folder, "env": _environment(), "text": True}
        return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def last_line(text: str) -> str:
    """Return the last line with contents."""
    return (text.strip().splitlines() or [""])[-1][:500]


def _environment() -> dict[str, str]:
    """Return this process's variables, with the packages where this process has found them."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
