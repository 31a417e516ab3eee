"""Check and measure everything on a GPU in minutes => a JSON file, each figure beside the card's own limits.

python scripts/benchmark.py gpu                                     nine minutes on an H100
python scripts/benchmark.py gpu --parts '[card,steps]' --minutes 4
python scripts/benchmark.py gpu --device cpu --size tiny            the same code in small, without a GPU

Each part runs in a process of its own, so that one that fails or hangs takes nothing along. The file is written after
each part. What does not fit into the time is named in it as left out.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arcvq.benchmarks.gpu.card import limits_of
from arcvq.benchmarks.gpu.needs import beside_limit
from arcvq.benchmarks.gpu.part_process import run_part
from arcvq.benchmarks.gpu.part_worker import PARTS, work_on
from arcvq.benchmarks.gpu.sizes import SIZES
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance

HELP = HelpPage(
    examples=("arcvq benchmark gpu", "arcvq benchmark gpu --device cpu --size tiny --output runs/tiny.json"),
    writes="OUTPUT: a JSON file with every figure, the card's limits beside it, and what was left out",
    following="arcvq benchmark (next to named peers), arcvq reproduce (the paper's tables)",
)

HOW = {
    "bytes": "sizes of what every operation of an eager run reads and writes; views and allocations count nothing",
    "flops": "of convolutions, matrix products and attention, by the formulas of torch.utils.flop_counter",
    "limit": "the larger of bytes / bandwidth of a copy and FLOPs / rate of a matrix product of the same kind",
    "seconds": "medians of blocks of runs; the host waits for the device between blocks alone",
}


@dataclass
class Report:
    """The results so far.

    Args:
        file: where they are written.
        protocol: where they come from.
    """

    file: Path
    protocol: dict[str, Any]

    def __post_init__(self):
        self.parts: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}

    def write(self) -> None:
        """Write all results so far."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {"protocol": self.protocol, "parts": self.parts, "left_out": self.left_out}
        self.file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Check and measure everything on a GPU in minutes.", page=HELP)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="what is measured")
    parser.add_argument("--size", choices=list(SIZES), default="full", help="tiny: for a CPU, in a few minutes")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which everything ends")
    parser.add_argument("--parts", type=list[str] | None, default=None, help=f"some of {', '.join(PARTS)}; None: all")
    parser.add_argument("--output", type=str, default="runs/gpu.json", help="JSON file of the results")
    parser.add_argument("--worker", type=str | None, default=None, help="the part that one process does")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run the parts one after the other, print a line for each figure, and write the JSON after each part."""
    config = make_parser().parse(args)
    if config.worker is not None:
        work_on(config.worker, torch.device(config.device), SIZES[config.size], 60 * config.minutes)
        return
    if not config.minutes > 0:
        raise ValueError(f"minutes must be above 0, got {config.minutes}")
    chosen = list(PARTS) if config.parts is None else config.parts
    if not chosen:
        raise ValueError(f"parts is empty; name some of {', '.join(PARTS)}, or leave it out for all")
    if unknown := [name for name in chosen if name not in PARTS]:
        raise ValueError(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that PyTorch can use; --device cpu --size tiny runs the same without one")
    ends = time.monotonic() + 60 * config.minutes
    protocol = provenance("benchmark gpu", args) | machine() | {"how": HOW}
    protocol |= {name: getattr(config, name) for name in ("device", "size", "minutes")}
    report, limits = Report(Path(config.output), protocol), None
    report.write()  # a place that cannot be written to is an error now
    for index, name in enumerate(chosen):
        later = sum(PARTS[other].share for other in chosen[index:])
        seconds = (ends - time.monotonic()) * PARTS[name].share / later
        found = run_part(name, config.device, config.size, seconds)
        if name == "card":
            limits = limits_of(found.figures)
        figures = {title: beside_limit(figure, limits) for title, figure in found.figures.items()}
        report.parts[name] = {"seconds": found.seconds, "figures": figures}
        report.left_out |= {f"{name}: {title}": why for title, why in found.left_out.items()}
        report.write()
        for title, figure in figures.items():
            print(f"{name}: {title}: {_in_words(figure)}", flush=True)
    for title, why in report.left_out.items():
        print(f"left out: {title}: {why}")
    print(f"results: {report.file}")


def _in_words(figure: dict[str, Any]) -> str:
    """Say a figure in one line."""
    if isinstance(figure.get("failed"), str):
        return f"failed: {figure['failed']}"
    words = [f"{figure['seconds'] * 1e3:.3g} ms"] if "seconds" in figure else []
    words += [f"{figure['limit']['time_over_limit']:.3g} times the limit"] if "limit" in figure else []
    units = {"bytes_per_s": (1e9, "GB/s"), "flops_per_s": (1e12, "TFLOP/s"), "us_per_operation": (1, "us each")}
    words += [f"{figure[name] / scale:.4g} {unit}" for name, (scale, unit) in units.items() if name in figure]
    words += [f"waits {figure['waits']}"] if "waits" in figure else []
    shown = ("launches_per_step", "equal", "passed", "failures", "name")
    words += [f"{name} {figure[name]}" for name in shown if name in figure]
    return ", ".join(words) or "done"
