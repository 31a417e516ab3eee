"""One part of the GPU benchmark in its own process: it prints each figure as a line of JSON."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arcvq.benchmarks.gpu.bench import Bench, LeftOut
from arcvq.benchmarks.gpu.sizes import Sizes

NO_TIME = "the time was over"


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        place: the function that yields its figures, `module:function` in this folder.
        share: of the time, next to the shares of the other parts. What a part leaves is the later ones'.
    """

    place: str
    share: float


PARTS = {
    "card": Part("card:figures", 1.0),
    "tests": Part("checks:tests", 2.0),
    "quantizers": Part("digits:figures", 3.0),
    "quickstart": Part("checks:quickstart", 3.0),
    "deterministic": Part("checks:deterministic", 1.5),
    "grids": Part("grids:figures", 1.0),
    "priors": Part("priors:figures", 2.5),
    "steps": Part("steps:figures", 4.0),
}


def work_on(name: str, device: torch.device, sizes: Sizes, seconds: float) -> None:
    """Measure the figures of a part in order until `seconds` are over.

    The first line on stdout lists the names of all figures. Each further one is a figure: its name, and either
    `figure`, or `left_out`, a reason. What the work itself prints goes to stderr.
    """
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    module, function = PARTS[name].place.split(":")
    with tempfile.TemporaryDirectory(prefix="arcvq-gpu-") as folder, contextlib.redirect_stdout(sys.stderr):
        bench = Bench(device, sizes, time.monotonic() + seconds, Path(folder))
        figures = dict(getattr(importlib.import_module(f"arcvq.benchmarks.gpu.{module}"), function)(bench))
        print(json.dumps(list(figures)), file=out)
        for title, measure in figures.items():
            found: dict[str, Any] = {"name": title}
            try:
                if bench.seconds_left <= 0:
                    raise LeftOut(NO_TIME)
                found["figure"] = measure()
            except LeftOut as reason:
                found["left_out"] = str(reason)
            except subprocess.TimeoutExpired:
                found["left_out"] = NO_TIME
            except Exception as error:  # the others are worth having all the same
                found["figure"] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
            print(json.dumps(found), file=out)
            if bench.is_cuda:
                torch.cuda.empty_cache()
