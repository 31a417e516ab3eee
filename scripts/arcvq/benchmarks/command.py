"""Measure speed and memory against named peers => a table and a JSON file.

python scripts/benchmark.py                                          everything
python scripts/benchmark.py quantizers --grid 65536x512x64 --output runs/benchmark.json
python scripts/benchmark.py step --rounds 5
python scripts/benchmark.py sampling
python scripts/benchmark.py precision_recall --rounds 1 --repeats 1 --warmup 0
python scripts/benchmark.py quantizers --grid 65536x262144x8 --cases arc --rounds 1 --repeats 1 --warmup 1

Every case runs in its own process; the cases take turns (A B A B), `rounds` times. The table names the peers that are
not installed: pip install -e '.[benchmark]'.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from jsonargparse import Namespace
from tqdm.auto import tqdm

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance
from tokenizer import VQTokenizer

GRID = "65536x512x64,30720x1024x16,4096x16384x64"
# Number of float32 tables of N x K entries that a quantizer holds at its peak; a case that cannot fit is not started.
TABLES = {"plain": 10, "vector-quantize-pytorch": 3, "diffusers": 2, "products": 1, "arc": 0, "vq": 0}
QUANTIZER_CASES = ("arc", "products", "plain", "plain kept", "vector-quantize-pytorch", "diffusers", "vq")
PEERS = ("vector-quantize-pytorch", "diffusers")
STEP_CASES: dict[str, dict[str, Any]] = {
    "arc": {},
    "network": {},
    "arc bf16": {"name": "arc", "precision": "bf16"},
    "network bf16": {"name": "network", "precision": "bf16"},
    "plain": {},
    "plain kept": {"name": "plain"},
    **{name: {} for name in PEERS},
    "arc compiled": {"name": "arc", "compiled": True},
    "arc bf16 compiled": {"name": "arc", "precision": "bf16", "compiled": True},
}
# "calls" is the pipeline's network, scheduler and decoder alone; "two passes" runs guidance in two passes.
DIFFUSION_CASES = ("pipeline", "calls", "two passes", "pipeline compiled bf16")
# "full" runs the whole grid for every position; one forward is measured and multiplied by the positions.
PIXELCNN_CASES = ("cached", "full", "cached compiled")
PIXELCNN_GRIDS = "32x32x16,8x8x64"
FEATURES = "50000x10000x2048"
PRECISION_RECALL_CASES = ("ours", "torch-fidelity")

HELP = HelpPage(
    examples=(
        "arcvq benchmark",
        "arcvq benchmark quantizers --grid 65536x512x64",
        "arcvq benchmark step --rounds 5",
        "arcvq benchmark memory --help",
        "arcvq benchmark metrics --help",
        "arcvq benchmark loader --help",
        "arcvq benchmark threads --help",
    ),
    writes="OUTPUT: a JSON file with the protocol and the numbers of every case",
    following="arcvq benchmark memory (full-size models), arcvq benchmark metrics (against other libraries)",
)


@dataclass(frozen=True)
class Case:
    """The work of one benchmark process.

    Attributes:
        group: key of `arcvq.benchmarks.cases.CASES`.
        arguments: arguments of that function.
        items: tokens, or sampled images, per run.
        keep_freed_memory: set the allocator as this project's commands do.
        times: factor on the seconds of a run.
    """

    group: str
    arguments: dict[str, Any]
    items: int
    keep_freed_memory: bool = True
    times: int = 1


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Measure speed and memory against named peers.", page=HELP)
    groups = ["all", "quantizers", "step", "sampling", "precision_recall"]
    parser.add_argument("group", nargs="?", choices=groups, default="all", help="what is measured")
    parser.add_argument("--grid", type=str, default=GRID, help="tokens x codes x dimensions of the quantizers")
    parser.add_argument("--cases", type=str | None, default=None, help="cases by name, with commas; None: all")
    parser.add_argument("--batch_size", type=int, default=1024, help="images of a training step")
    parser.add_argument("--sampling_batch", type=int, default=64, help="images of the latent diffusion sampled at once")
    parser.add_argument("--sampling_steps", type=int, default=50, help="DDIM steps of the latent diffusion")
    parser.add_argument(
        "--pixelcnn_grids", type=str, default=PIXELCNN_GRIDS, help="height x width x images sampled at once"
    )
    parser.add_argument(
        "--features", type=str, default=FEATURES, help="samples x reference x dimensions of the features"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case")
    parser.add_argument("--repeats", type=int, default=5, help="runs in each process that are counted")
    parser.add_argument("--warmup", type=int, default=3, help="runs in each process before those")
    parser.add_argument("--threads", type=int | None, default=None, help="of the CPU; None: one per core")
    parser.add_argument("--output", type=str, default="runs/benchmark.json", help="JSON file of the results")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run the cases, print a table per group, and write the JSON after each."""
    config = make_parser().parse(args)
    for name in ("rounds", "repeats", "warmup", "batch_size", "sampling_batch", "sampling_steps"):
        least = 0 if name == "warmup" else 1
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if config.threads is not None and config.threads < 1:
        raise ValueError(f"threads must be at least 1, or None for one per core, got {config.threads}")
    tables = make_tables(config)
    known = {name for cases in tables.values() for name in cases}
    chosen = known if config.cases is None else set(config.cases.split(","))
    if unknown := chosen - known:
        raise ValueError(f"unknown case {min(unknown)!r}; there are {', '.join(sorted(known))}")
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    packages = [package for package in PEERS if importlib.util.find_spec(package.replace("-", "_")) is not None]
    protocol = provenance("benchmark", args, packages) | machine()
    protocol |= {"rounds": config.rounds, "repeats": config.repeats, "warmup": config.warmup}

    results = {}
    for title, cases in tables.items():
        if cases := {name: case for name, case in cases.items() if name in chosen}:
            results[title] = run_table(title, cases, config)
            print(as_text(title, results[title]), flush=True)
            output.write_text(json.dumps({"protocol": protocol, "results": results}, indent=2) + "\n")
    print(f"results: {output}")


def make_tables(config: Namespace) -> dict[str, dict[str, Case]]:
    """Return the cases of each table by name; a table's title ends with the unit of its items."""
    tables = {}
    if config.group in ("all", "quantizers"):
        for sizes in config.grid.split(","):
            tables[f"quantizer {sizes}, tokens"] = quantizer_cases(sizes)
    if config.group in ("all", "step"):
        shape = VQTokenizer().latent_shape
        tokens = config.batch_size * shape[1] * shape[2]
        tables[f"training step, batch {config.batch_size}, tokens"] = {
            # "plain" runs with the default allocator settings, "plain kept" with those of this project's commands.
            name: Case("step", step_arguments(name, config.batch_size), tokens, keep_freed_memory=name != "plain")
            for name in STEP_CASES
        }
    if config.group in ("all", "sampling"):
        batch, steps = config.sampling_batch, config.sampling_steps
        tables[f"latent diffusion, batch {batch}, {steps} DDIM steps, images"] = {
            name: Case("diffusion", {"name": name, "batch_size": batch, "steps": steps}, batch)
            for name in DIFFUSION_CASES
        }
        for sizes in config.pixelcnn_grids.split(","):
            tables[f"PixelCNN {sizes}, images"] = pixelcnn_cases(sizes)
    if config.group in ("all", "precision_recall"):
        samples, reference, dim = numbers_of("features", config.features, FEATURES)
        sizes = {"samples": samples, "reference": reference, "dim": dim}
        tables[f"precision and recall {config.features}, samples"] = {
            name: Case("precision_recall", {"name": name, **sizes}, samples) for name in PRECISION_RECALL_CASES
        }
    return tables


def numbers_of(option: str, sizes: str, example: str) -> list[int]:
    """Parse three sizes written as AxBxC. Raises ValueError for anything else."""
    try:
        numbers = [int(size) for size in sizes.split("x")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"{option} takes three sizes of at least 1, such as {example}, got {sizes!r}")
    return numbers


def quantizer_cases(sizes: str) -> dict[str, Case]:
    """Return the cases of one size of the grid, N x K x D."""
    tokens, codes, dim = numbers_of("grid", sizes, GRID.split(",")[0])
    arguments = {"tokens": tokens, "codes": codes, "dim": dim}
    return {
        name: Case("quantizers", {"name": name.removesuffix(" kept"), **arguments}, tokens, name != "plain")
        for name in QUANTIZER_CASES
    }


def pixelcnn_cases(sizes: str) -> dict[str, Case]:
    """Return the cases of one grid and batch, h x w x B."""
    height, width, batch = numbers_of("pixelcnn_grids", sizes, PIXELCNN_GRIDS.split(",")[0])
    arguments = {"height": height, "width": width, "batch_size": batch}
    return {
        name: Case("pixelcnn", {"name": name, **arguments}, batch, times=height * width if name == "full" else 1)
        for name in PIXELCNN_CASES
    }


def step_arguments(case: str, batch_size: int) -> dict[str, Any]:
    """Return the arguments of a case of `STEP_CASES`; float32 and eager by default."""
    return {"name": case, "precision": "no", "compiled": False, "batch_size": batch_size} | STEP_CASES[case]


def run_table(title: str, cases: dict[str, Case], config: Namespace) -> dict[str, Any]:
    """Return each case's median, spread, memory and items per second, or the reason why it has none."""
    table: dict[str, Any] = {name: reason for name, case in cases.items() if (reason := left_out(case))}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases if name not in table}
    with tqdm(total=config.rounds * len(runs), desc=title) as bar:
        for _ in range(config.rounds):
            for name in runs:
                bar.set_postfix_str(name)
                if name not in table:
                    measured = run_case(cases[name], config)
                    if isinstance(measured, str):
                        table[name] = measured
                    else:
                        runs[name].append(measured)
                bar.update()
    for name, measured in runs.items():
        if name not in table:
            table[name] = summary(measured, cases[name])
    return {name: table[name] for name in cases}


def summary(measured: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    """Summarise a case over its processes; each process counts with the median of its runs."""
    medians = [case.times * statistics.median(run["seconds"]) for run in measured]
    memory = [run["memory_mb"] for run in measured]
    return {
        "median_s": statistics.median(medians),
        "fastest_s": min(medians),
        "slowest_s": max(medians),
        "memory_mb": None if None in memory else statistics.median(memory),
        "peak_mb": None if None in memory else max(run["peak_mb"] for run in measured),
        "items_per_s": case.items / statistics.median(medians),
        "threads": measured[0]["threads"],
        "keep_freed_memory": case.keep_freed_memory,
        "counted_times": case.times,
        "seconds": [run["seconds"] for run in measured],
    }


def run_case(case: Case, config: Namespace) -> dict[str, Any] | str:
    """Measure a case in a process; return its numbers, or the reason where it fails."""
    description = asdict(case) | {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "repeats": config.repeats,
        "warmup": config.warmup,
        "threads": config.threads,
    }
    worker = [sys.executable, "-m", "arcvq.benchmarks.cases"]
    done = subprocess.run([*worker, json.dumps(description)], capture_output=True, text=True)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def left_out(case: Case) -> str | None:
    """Return the reason why a case cannot run here, or None."""
    name = case.arguments["name"]
    if name == "vector-quantize-pytorch" and importlib.util.find_spec("vector_quantize_pytorch") is None:
        return "not installed: pip install -e '.[benchmark]'"
    if case.group == "quantizers":
        needed = TABLES[name] * case.arguments["tokens"] * case.arguments["codes"] * 4
        cuda = torch.cuda.is_available()
        there = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
        if needed > there:
            return f"not run: would need about {needed / 2**30:.0f} GiB, {there / 2**30:.0f} GiB are free"
    return None


def as_text(title: str, table: dict[str, Any]) -> str:
    """Format a table; each case's time is also given as a multiple of the first one's."""
    first, first_row = next(((name, row) for name, row in table.items() if isinstance(row, dict)), (None, None))
    unit = title.rsplit(" ", 1)[-1]
    lines = [title, f"  {'case':26}{'median':>11}{'spread':>21}{f'/ {first}':>10}{'memory':>12}{unit + '/s':>12}"]
    for name, row in table.items():
        if isinstance(row, str):
            lines.append(f"  {name:26}{row}")
            continue
        spread = f"{row['fastest_s'] * 1e3:.1f} - {row['slowest_s'] * 1e3:.1f}"
        memory = "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f} MB"
        lines.append(
            f"  {name:26}{row['median_s'] * 1e3:8.1f} ms{spread:>21}{row['median_s'] / first_row['median_s']:10.2f}"
            f"{memory:>12}{row['items_per_s']:12.0f}"
        )
    return "\n".join(lines)
