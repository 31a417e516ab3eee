"""Measures speed and memory against named peers => a table and a JSON file.

python scripts/benchmark.py                                          everything
python scripts/benchmark.py quantizers --grid 65536x512x64 --output runs/benchmark.json
python scripts/benchmark.py step --rounds 5
python scripts/benchmark.py sampling

Every case runs in a process of its own, all of them in turn (A B A B), `rounds` times. Peers that are not installed are
left out and named: pip install -e '.[benchmark]'.
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from command_line import ScriptParser, run_script
from provenance import provenance
from tqdm.auto import tqdm

GRID = "65536x512x64,30720x1024x16,4096x16384x64"
# float32 tables of N x K entries that a quantizer holds at its peak, about; what cannot fit is not begun.
TABLES = {"plain": 10, "vector-quantize-pytorch": 3, "diffusers": 2, "products": 1, "arc": 0, "vq": 0}
QUANTIZER_CASES = ("arc", "products", "plain", "vector-quantize-pytorch", "diffusers", "vq")
STEP_CASES = {
    "arc": {"name": "arc", "precision": "no", "compile": False},
    "network": {"name": "network", "precision": "no", "compile": False},
    "arc bf16": {"name": "arc", "precision": "bf16", "compile": False},
    "network bf16": {"name": "network", "precision": "bf16", "compile": False},
    "plain": {"name": "plain", "precision": "no", "compile": False},
    "arc compiled": {"name": "arc", "precision": "no", "compile": True},
    "arc bf16 compiled": {"name": "arc", "precision": "bf16", "compile": True},
}
SAMPLING_CASES = ("ldm", "ldm-network", "pixelcnn", "pixelcnn-network")


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Measure speed and memory against named peers.")
    groups = ["all", "quantizers", "step", "sampling"]
    parser.add_argument("group", nargs="?", choices=groups, default="all", help="what is measured")
    parser.add_argument("--grid", type=str, default=GRID, help="tokens x codes x dimensions of the quantizers")
    parser.add_argument("--cases", type=str | None, default=None, help="cases by name, with commas; None: all")
    parser.add_argument("--batch_size", type=int, default=1024, help="images of a training step")
    parser.add_argument("--sampling_batch", type=int, default=16, help="images sampled at once")
    parser.add_argument("--sampling_steps", type=int, default=50, help="DDIM steps of the latent diffusion")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case")
    parser.add_argument("--repeats", type=int, default=5, help="runs in each process, after one that is not counted")
    parser.add_argument("--threads", type=int | None, default=None, help="of the CPU; None: one per core")
    parser.add_argument("--output", type=str, default="runs/benchmark.json", help="JSON file of the results")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Runs the cases, prints a table per group and writes the JSON."""
    config = make_parser().parse(args)
    if min(config.rounds, config.repeats, config.batch_size, config.sampling_batch, config.sampling_steps) < 1:
        raise ValueError("rounds, repeats, batch_size, sampling_batch and sampling_steps must be at least 1")
    chosen = None if config.cases is None else config.cases.split(",")
    tables = {}
    if config.group in ("all", "quantizers"):
        for sizes in config.grid.split(","):
            tables[f"quantizer {sizes}"] = quantizer_cases(sizes)
    if config.group in ("all", "step"):
        tables[f"step, batch {config.batch_size}"] = {
            name: ("step", {**case, "batch_size": config.batch_size}, config.batch_size * 64)
            for name, case in STEP_CASES.items()
        }
    if config.group in ("all", "sampling"):
        sizes = {"batch_size": config.sampling_batch, "steps": config.sampling_steps}
        tables["sampling"] = {
            name: ("sampling", {"name": name, **sizes}, config.sampling_batch) for name in SAMPLING_CASES
        }
    known = {name for cases in tables.values() for name in cases}
    if chosen is not None and (unknown := set(chosen) - known):
        raise ValueError(f"unknown case {min(unknown)!r}; there are {', '.join(sorted(known))}")
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)

    results = {}
    for title, cases in tables.items():
        cases = {name: case for name, case in cases.items() if chosen is None or name in chosen}
        if cases:
            results[title] = run_table(title, cases, config)
            print(as_text(title, results[title]), flush=True)
    protocol = provenance("benchmark", args) | machine() | {"rounds": config.rounds, "repeats": config.repeats}
    output.write_text(json.dumps({"protocol": protocol, "results": results}, indent=2) + "\n")
    print(f"results: {output}")


def quantizer_cases(sizes: str) -> dict[str, Any]:
    """The cases of one place of the grid, N x K x D."""
    try:
        tokens, codes, dim = (int(size) for size in sizes.split("x"))
    except ValueError as error:
        raise ValueError(f"grid takes NxKxD, such as {GRID.split(',')[0]}, got {sizes!r}") from error
    if min(tokens, codes, dim) < 1:
        raise ValueError(f"grid takes sizes of at least 1, got {sizes!r}")
    arguments = {"tokens": tokens, "codes": codes, "dim": dim}
    return {name: ("quantizers", {"name": name, **arguments}, tokens) for name in QUANTIZER_CASES}


def run_table(title: str, cases: dict[str, Any], config: Any) -> dict[str, Any]:
    """Each case's median, spread, memory and items per second, or why it was left out."""
    table: dict[str, Any] = {name: reason for name, case in cases.items() if (reason := left_out(case))}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases if name not in table}
    with tqdm(total=config.rounds * len(runs), desc=title) as bar:
        for _ in range(config.rounds):
            for name in runs:
                bar.set_postfix_str(name)
                runs[name].append(run_case(*cases[name][:2], config))
                bar.update()
    for name, measured in runs.items():
        medians = [statistics.median(run["seconds"]) for run in measured]
        median = statistics.median(medians)
        table[name] = {
            "median_s": median,
            "fastest_s": min(medians),
            "slowest_s": max(medians),
            "memory_mb": statistics.median(run["memory_mb"] for run in measured),
            "items_per_s": cases[name][2] / median,
            "threads": measured[0]["threads"],
            "seconds": [run["seconds"] for run in measured],
        }
    return {name: table[name] for name in cases}


def run_case(group: str, arguments: dict[str, Any], config: Any) -> dict[str, Any]:
    """One process of one case."""
    description = {
        "group": group,
        "arguments": arguments,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "repeats": config.repeats,
        "threads": config.threads,
        # The plain form runs as any script would: with the allocator as it comes.
        "keep_freed_memory": arguments["name"] != "plain",
    }
    worker = Path(__file__).with_name("benchmark_cases.py")
    done = subprocess.run(
        [sys.executable, str(worker), json.dumps(description)], capture_output=True, text=True, env=os.environ
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ValueError(f"case {arguments} failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def left_out(case: tuple[str, dict[str, Any], int]) -> str | None:
    """Why a case cannot be run here; None if it can."""
    group, arguments, _ = case
    name = arguments["name"]
    if name == "vector-quantize-pytorch" and importlib.util.find_spec("vector_quantize_pytorch") is None:
        return "not installed: pip install -e '.[benchmark]'"
    if group == "quantizers":
        needed = TABLES[name] * arguments["tokens"] * arguments["codes"] * 4
        cuda = torch.cuda.is_available()
        there = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
        if needed > there:
            return f"not run: would need about {needed / 2**30:.0f} GiB, {there / 2**30:.0f} GiB are free"
    return None


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def cpu_lines() -> list[str]:
    """What Linux says of the processor; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def as_text(title: str, table: dict[str, Any]) -> str:
    """The table, with each case's time as a multiple of the first one's."""
    first = next((row for row in table.values() if isinstance(row, dict)), None)
    lines = [title, f"  {'case':26}{'median':>11}{'spread':>21}{'ratio':>8}{'memory':>12}{'items/s':>12}"]
    for name, row in table.items():
        if isinstance(row, str):
            lines.append(f"  {name:26}{row}")
            continue
        spread = f"{row['fastest_s'] * 1e3:.1f} - {row['slowest_s'] * 1e3:.1f}"
        lines.append(
            f"  {name:26}{row['median_s'] * 1e3:8.1f} ms{spread:>21}{row['median_s'] / first['median_s']:8.2f}"
            f"{row['memory_mb']:9.0f} MB{row['items_per_s']:12.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
