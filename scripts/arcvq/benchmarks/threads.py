"""Measure training steps beside busy processes, by number of threads => a table and a JSON file.

python scripts/benchmark.py threads
python scripts/benchmark.py threads --busy '[0,3]' --rounds 3 --output runs/threads.json

Each state has so many other processes, which multiply matrices with two threads each. Each case trains in its own
process, all cases in turn: `chosen` without an option, the fixed numbers with --run.threads, and `own barrier`, where
the threads wait as OpenMP has it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from arcvq.cli.configs import CONFIGS
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance
from arcvq.compute.barrier import OWN_SPIN_COUNT
from arcvq.compute.threads import usable_cores
from arcvq.planning.dry_run import plan_data
from arcvq.planning.planned_training import PlannedTraining
from arcvq.training import tokenizer as train_tokenizer

_DIGITS = f"--config={CONFIGS / 'digits' / 'tokenizer.yaml'}"
TRAININGS = {"digits": [_DIGITS], "64 px": [_DIGITS, "--data.image_size=64"]}

HELP = HelpPage(
    examples=("arcvq benchmark threads", "arcvq benchmark threads --busy '[0,3]' --rounds 3"),
    writes="OUTPUT: a JSON file with the seconds of a step of each training, beside each number of busy processes",
    following="--run.threads fixes the number of threads of a training",
)


def main(args: Sequence[str] | None = None) -> None:
    """Measure every training in every state, print a line for each, and write the JSON after each."""
    parser = ScriptParser("Measure training steps beside busy processes.", page=HELP)
    parser.add_argument("--busy", type=list[int], default=[0, 1, 3], help="numbers of busy processes")
    parser.add_argument("--trainings", type=list[str], default=list(TRAININGS), help="what is trained")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each case")
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of a turn")
    parser.add_argument("--output", type=str, default="runs/threads.json", help="JSON file of the results")
    parser.add_argument("--options", type=list[str], default=[], help="other options of the training")
    parser.add_argument("--worker", type=str | None, default=None, help="what one process does: steps or busy")
    config = parser.parse(args)
    if config.worker is not None:
        {"steps": make_steps, "busy": be_busy}[config.worker](config.options)
        return
    if unknown := set(config.trainings) - TRAININGS.keys():
        raise ValueError(f"trainings has {min(unknown)!r}; there are {', '.join(TRAININGS)}")
    if config.rounds < 1 or min(config.busy, default=0) < 0:
        raise ValueError(f"rounds must be at least 1, and busy from 0 on, got {config.rounds} and {config.busy}")
    results: dict[str, dict[str, Any]] = {}
    for training in config.trainings:
        for busy in config.busy:
            row = measure([*TRAININGS[training], *config.options], busy, config)
            results.setdefault(training, {})[str(busy)] = row
            times = ", ".join(f"{case} {values['median']:.3f} s" for case, values in row["cases"].items())
            print(f"{training} beside {busy}: {times}; {row['chosen_over_best']:.2f} x the best fixed", flush=True)
            protocol = provenance("benchmark threads", args) | machine()
            output = Path(config.output)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps({"protocol": protocol, "results": results}, indent=2) + "\n")
    print(f"results: {config.output}")


def measure(options: list[str], busy: int, config: Namespace) -> dict[str, Any]:
    """Measure all cases of a training in one state, in turn.

    Returns:
        by case the seconds of a step in each round and their median; the ratio of `chosen` to the best fixed number.
    """
    cores = usable_cores()
    fixed = [f"{threads} thread{'s' if threads > 1 else ''}" for threads in sorted({1, max(1, cores // 2), cores})]
    cases = {"chosen": options} | {case: [*options, f"--run.threads={case.split()[0]}"] for case in fixed}
    with _workers("steps", {**cases, "own barrier": options}) as workers, _workers("busy", dict.fromkeys(range(busy))):
        seconds: dict[str, list[float]] = {case: [] for case in workers}
        for _ in range(config.rounds):
            for case, worker in workers.items():
                print(config.seconds, file=worker.stdin, flush=True)
                seconds[case].append(float(_answer(worker)))
    measured = {case: {"seconds": values, "median": statistics.median(values)} for case, values in seconds.items()}
    best = min(measured[case]["median"] for case in fixed)
    return {"cases": measured, "chosen_over_best": measured["chosen"]["median"] / best}


@contextmanager
def _workers(kind: str, options: dict[Any, list[str] | None]) -> Iterator[dict[Any, subprocess.Popen]]:
    """Start processes by name, wait until all are ready, and end them at last."""
    command = [sys.executable, "-m", "arcvq", "benchmark", "threads", "--worker", kind]
    user = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}
    workers = {}
    try:
        for name, arguments in options.items():
            own = {"GOMP_SPINCOUNT": str(OWN_SPIN_COUNT)} if kind == "busy" or name == "own barrier" else {}
            workers[name] = subprocess.Popen(
                [*command, f"--options={json.dumps(arguments or [])}"],
                env=user | own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        for worker in workers.values():
            while _answer(worker) != "ready":
                pass
        yield workers
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()


def _answer(worker: subprocess.Popen) -> str:
    """Read a line of a worker's."""
    if not (line := worker.stdout.readline()):
        raise RuntimeError(f"a process of the measurement has ended with status {worker.wait()}")
    return line.strip()


def make_steps(options: list[str]) -> None:
    """For each line of standard input, a number of seconds, train that long and print the seconds of a step."""
    parser = train_tokenizer.make_parser()
    config = parser.parse(options)
    train_tokenizer.check(config)
    planned = PlannedTraining(train_tokenizer, config, parser.settings(config), plan_data(config), processes=1)
    for _ in range(2):  # the optimizer's state is there in the second
        planned.step()
    print("ready", flush=True)
    for line in sys.stdin:
        steps, began = 0, time.perf_counter()
        while steps == 0 or time.perf_counter() - began < float(line):
            planned.step()
            steps += 1
        print((time.perf_counter() - began) / steps, flush=True)


def be_busy(options: list[str]) -> None:
    """Multiply matrices with two threads for as long as the measuring process lives."""
    torch.set_num_threads(2)
    matrix = torch.ones(1024, 1024)
    print("ready", flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        matrix @ matrix
