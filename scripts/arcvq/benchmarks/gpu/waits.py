"""Find the lines of this project at which the host waits for a GPU."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_SYNC_WARNING = "called a synchronizing CUDA operation"
_PACKAGES = ("tokenizer", "priors", "pipelines", "arcvq")
_HERE = Path(__file__).resolve().parent


@contextmanager
def reported_waits(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` with the line of this project at each operation that waits for the device, within the context.

    PyTorch warns of them, in the thread that has called the operation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always")

        def show(message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
            if _SYNC_WARNING in str(message):
                report(own_line(sys._getframe()) or f"{filename}:{lineno}")

        warnings.showwarning = show  # catch_warnings puts the former one back
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def own_line(frame: FrameType | None) -> str | None:
    """Return the innermost line of this project on a stack, but for this folder's; None where there is none."""
    while frame is not None:
        path, package = Path(frame.f_code.co_filename), frame.f_globals.get("__name__", "").split(".")[0]
        if package in _PACKAGES and package in path.parts and path.resolve().parent != _HERE:
            inside = path.parts[len(path.parts) - 1 - path.parts[::-1].index(package) :]
            return f"{'/'.join(inside)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return None
