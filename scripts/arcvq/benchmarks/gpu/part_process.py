"""Run a part of the GPU benchmark in a process, and take what it has when its time is over."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from arcvq.benchmarks.gpu.bench import last_line
from arcvq.benchmarks.gpu.part_worker import NO_TIME


@dataclass
class PartResult:
    """Hold what a part has found.

    Attributes:
        seconds: that it took.
        figures: its figures by name; one that failed says so in `failed`.
        left_out: the reason why a figure was not measured, by name.
    """

    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def run_part(name: str, device: str, size: str, seconds: float) -> PartResult:
    """Run a part for at most `seconds`; SIGTERM ends it and all that it has started."""
    command = [sys.executable, "-m", "arcvq", "benchmark", "gpu", "--worker", name, "--device", device]
    command += ["--size", size, "--minutes", str(seconds / 60)]
    # Some parts take the GPU if there is one, whatever they are told.
    variables = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    began, lines = time.monotonic(), []
    if seconds <= 0:
        return PartResult(0.0, left_out={"all": NO_TIME})
    with tempfile.TemporaryFile("w+") as errors, _exiting_at_sigterm():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
        is_over = threading.Event()
        timer = threading.Timer(seconds, lambda: (is_over.set(), _kill(process.pid)))
        timer.start()
        try:
            lines = [json.loads(line) for line in process.stdout if line.endswith("\n")]
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                _kill(process.pid)
        errors.seek(0)
        reason = last_line(errors.read()) or f"status {status}"
    return _result(lines, NO_TIME if is_over.is_set() else None, reason, time.monotonic() - began)


def _result(lines: list[Any], no_time: str | None, reason: str, seconds: float) -> PartResult:
    """Read what a process has printed.

    Args:
        lines: the names of all figures, and those that it has measured; empty if it did not come so far.
        no_time: why the others are left out, if the process was ended; None: it ended by itself.
        reason: why it ended, if it left some of them.
        seconds: that it took.
    """
    result = PartResult(seconds)
    names, *measured = lines or [["start"]]
    for found in measured:
        if "left_out" in found:
            result.left_out[found["name"]] = found["left_out"]
        else:
            result.figures[found["name"]] = found["figure"]
    missing = [name for name in names if name not in result.figures and name not in result.left_out]
    if missing and no_time is None:  # the first of them has ended the process
        result.figures[missing.pop(0)] = {"failed": reason}
    result.left_out |= dict.fromkeys(missing, no_time or "the process had ended")
    return result


@contextmanager
def _exiting_at_sigterm() -> Iterator[None]:
    """Make SIGTERM an exit with its status: by itself it would end this process without those that it has started."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kill(process: int) -> None:
    """End a process and all that it has started."""
    try:
        family = [*psutil.Process(process).children(recursive=True), psutil.Process(process)]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
