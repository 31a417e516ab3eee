"""Record each start of a training in its run folder, starts.jsonl: which code went on from which step, and on what."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from arcvq.cli.provenance import code_and_device, machine
from arcvq.compute.atomic_files import atomic_file

STARTS = "starts.jsonl"
# What tables and model cards read of each start, besides its step.
_READ = ("commit", "versions", "device", "processor", "cores", "threads", "processes")


def record_start(folder: Path, step: int, processes: int) -> None:
    """Append a start after `step` completed steps: time, commit, versions, device, processor, threads and processes.

    The main process calls this; `threads` are those of each process.
    """
    start = {"step": step, "time": datetime.now(UTC).isoformat(timespec="seconds"), **code_and_device(), **machine()}
    start |= {"threads": torch.get_num_threads(), "processes": processes}
    file = folder / STARTS
    before = file.read_bytes() if file.is_file() else b""
    with atomic_file(file) as unfinished:  # as a whole: a line cut off by a kill would spoil the next one
        unfinished.write_bytes(before + json.dumps(start).encode() + b"\n")


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the starts of a run, oldest first; none of a run from before they were recorded.

    Raises:
        ValueError: a line is no start.
    """
    file = folder / STARTS
    starts = []
    for number, line in enumerate(file.read_text("utf-8").splitlines() if file.is_file() else [], start=1):
        try:
            starts.append(json.loads(line))
            starts[-1]["step"] + 0
            for name in _READ:
                starts[-1][name]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} of {file} is no start of a training; remove the line") from error
    return starts


def starts_behind(starts: Iterable[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Return the starts that made a part of the first `step` steps.

    A start whose steps a later one repeats, as after a kill before the first checkpoint, has no part in the weights.
    """
    kept: list[dict[str, Any]] = []
    for start in starts:
        while kept and kept[-1]["step"] >= start["step"]:
            kept.pop()
        kept.append(start)
    return [start for start in kept if start["step"] < step]
