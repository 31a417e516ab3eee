"""Measure a training step of the full-size models, and the dry run's estimate => a table and a JSON file.

python scripts/benchmark.py memory                                     both, one after the other
python scripts/benchmark.py memory tokenizer --steps 2 --output runs/full_size.json

The models are the f8 VQGAN of configs/imagenet at 256 px, batch 1, with LPIPS and discriminator, and its UNet at
32 x 32 x 16, batch 2, both in float32. The training's own code runs each in its own process. Images and latents are
uninitialised, and LPIPS's network has random weights; neither changes time or memory.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from arcvq.cli.configs import CONFIGS
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance
from arcvq.planning.dry_run import estimate as estimate_needs
from arcvq.planning.dry_run import format_bytes, plan_data
from arcvq.planning.timing import step_times
from arcvq.training import ldm as train_ldm
from arcvq.training import tokenizer as train_tokenizer

_ALIKE = ("--run.mixed_precision", "no", "--optim.batch_size")
# Training and its arguments.
CASES: dict[str, tuple[Any, list[str]]] = {
    "tokenizer": (train_tokenizer, [f"--config={CONFIGS / 'imagenet' / 'arcvq_f8.yaml'}", *_ALIKE, "1"]),
    "unet": (train_ldm, [f"--config={CONFIGS / 'imagenet' / 'ldm.yaml'}", *_ALIKE, "2"]),
}

HELP = HelpPage(
    examples=("arcvq benchmark memory", "arcvq benchmark memory tokenizer --steps 2 --output runs/full_size.json"),
    writes="OUTPUT: a JSON file with the measured and the estimated memory",
    following="arcvq train-tokenizer --config imagenet/arcvq_f8.yaml --dry_run estimates without measuring",
)


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Measure a training step of the full-size models.", page=HELP)
    parser.add_argument("case", nargs="?", choices=["all", *CASES], default="all", help="what is measured")
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of each; the optimiser's state is there in the second"
    )
    parser.add_argument("--output", type=str, default="runs/full_size.json", help="JSON file of the results")
    parser.add_argument("--options", type=list[str], default=[], help="other options of the training")
    parser.add_argument("--worker", type=str | None, default=None, help="what one process does: estimate or steps")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a line for each case, and write the JSON after each."""
    config = make_parser().parse(args)
    if config.steps < 2:
        raise ValueError(f"steps must be at least 2, got {config.steps}")
    if config.worker is not None:
        work = {"estimate": estimate, "steps": make_steps}[config.worker]
        print(json.dumps(work(config.case, config.options, config.steps)))
        return
    results = {}
    for case in CASES if config.case == "all" else [config.case]:
        estimated = in_process(case, "estimate", config)
        free = psutil.virtual_memory().available
        if estimated["bytes"] > free:
            raise ValueError(
                f"{case} takes about {format_bytes(estimated['bytes'])}, and {format_bytes(free)} are free"
            )
        measured = in_process(case, "steps", config)
        results[case] = measured | {
            "estimate": estimated,
            "estimate_over_peak": estimated["bytes"] / measured["peak_bytes"],
        }
        print(
            f"{case}: step {min(measured['seconds']):.1f} s, peak {format_bytes(measured['peak_bytes'])}, estimate "
            f"{format_bytes(estimated['bytes'])}, {results[case]['estimate_over_peak'] - 1:+.1%}",
            flush=True,
        )
        protocol = provenance("benchmark memory", args) | machine() | {"lpips_weights": "random"}
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"protocol": protocol, "results": results}, indent=2) + "\n")
    print(f"results: {config.output}")


def in_process(case: str, worker: str, config: Any) -> dict[str, Any]:
    """Run a worker in its own process, and return its result."""
    command = [
        sys.executable,
        "-m",
        "arcvq",
        "benchmark",
        "memory",
        case,
        "--worker",
        worker,
        "--steps",
        str(config.steps),
    ]
    command += [f"--options={json.dumps(config.options)}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise ValueError(f"the {worker} of {case} failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def estimate(case: str, options: list[str], steps: int) -> dict[str, Any]:
    """Return the dry run's estimate: bytes, bytes by part, and parameters."""
    script, arguments = CASES[case]
    parser = script.make_parser()
    config = parser.parse([*arguments, *options])
    script.check(config)
    report = estimate_needs(script, config, parser.settings(config), plan_data(config), processes=1)
    memory = report.memory
    parts = memory.tensors | {"holes of the allocator": memory.fragmentation, "program": memory.program}
    return {"bytes": memory.total, "parts": parts, "parameters": report.parameters}


def make_steps(case: str, options: list[str], steps: int) -> dict[str, Any]:
    """Make real steps; return the seconds of each, and the peak memory of the process."""
    script, arguments = CASES[case]
    seconds = step_times(script, [*arguments, *options], steps)
    # getrusage's peak would include that of the parent process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    return {
        "options": [*arguments[1:], *options],
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "peak_bytes": peak,
    }
