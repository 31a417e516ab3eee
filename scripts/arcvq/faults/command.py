"""Measure how trainings survive faults: kills, failing disks, NaN losses, broken configs and images.

python scripts/faults.py                       # all of it: an hour or two on two cores
python scripts/faults.py --sections '[kills]' --trainings 'gan$' --trials 3
python scripts/faults.py --sections '[states, nan, inputs]'

The results go into a JSON file, each section with its command and commit; other sections in the file are kept.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jsonargparse import Namespace
from safetensors.torch import load_file

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance
from arcvq.faults.inputs import try_inputs
from arcvq.faults.states import FAULTS, FaultyRun, training_for
from arcvq.faults.table import fault_tables
from arcvq.faults.trainings import FaultTraining, fault_trainings, kills

Section = Literal["kills", "states", "nan", "inputs"]

# Loss terms that are set to NaN, by training; NAN_OPTIONS switches some of them on.
NAN_TERMS = {
    "tokenizer-gan": ("reconstruction", "codebook", "commitment", "arc", "generator", "discriminator", "lecam", "r1"),
    "tokenizer": ("perceptual",),
    "tokenizer-gan, 2 processes": ("codebook@1", "discriminator@1"),
    "ldm": ("loss",),
    "ldm, 2 processes": ("loss@1",),
    "pixelcnn": ("loss",),
}
NAN_OPTIONS = {
    "tokenizer-gan": ("--adversarial.r1_weight", "0.1", "--adversarial.r1_every", "1"),
    "tokenizer": ("--loss.perceptual_weight", "1", "--loss.perceptual_net", "squeeze"),
}

HELP = HelpPage(
    examples=(
        "arcvq faults",
        "arcvq faults --sections '[kills]' --trainings 'gan$' --trials 3",
        "arcvq faults --sections '[states, nan, inputs]'",
    ),
    writes="OUTPUT: a JSON file; the measured sections replace those in it, the others stay",
    following="nothing: the verb prints its table",
)


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Measure what becomes of trainings under faults.", page=HELP)
    parser.add_argument("--sections", type=list[Section], default=list(get_args(Section)), help="what is measured")
    parser.add_argument("--trials", type=int, default=20, help="kills of each training, each in a run of its own")
    parser.add_argument("--trainings", type=str, default="", help="those to be killed: a regular expression")
    parser.add_argument("--inputs", type=int, default=10_000, help="configs and images, half of each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of what is broken")
    parser.add_argument("--output", type=str, default="runs/faults.json")
    return parser


def check(config: Namespace) -> None:
    """Raise ValueError for options that cannot work, before time is spent."""
    if sys.platform == "win32":
        raise ValueError("arcvq faults sends signals and forks, which Windows cannot: run it on Linux")
    for name in ("trials", "inputs"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not config.sections:
        raise ValueError(f"sections must be some of {', '.join(get_args(Section))}, got none")
    try:
        re.compile(config.trainings)
    except re.error as error:
        raise ValueError(f"trainings is no regular expression: {error}, got {config.trainings!r:.80}") from error


def measure_kills(
    home: Path, trainings: Sequence[FaultTraining], trials: int, pattern: str, seed: int
) -> dict[str, Any]:
    """Kill each training `trials` times, and count how often it ends equal to an undisturbed one."""
    _ensure_tokenizer(home, trainings)
    rows = {}
    for training in trainings:
        if not re.search(pattern, training.name):
            continue
        found = list(_print_each(training.name, kills(training, home, trials, seed)))
        rows[training.name] = {
            "kills": trials,
            "equal": sum(same for _, same in found),
            "while saving": sum("written" in where for where, _ in found),
            "moments": [where for where, _ in found],
        }
    return rows


def measure_states(home: Path, trainings: Sequence[FaultTraining]) -> dict[str, Any]:
    """Let each fault happen to a training that is half done."""
    _ensure_tokenizer(home, trainings)
    by_name = {training.name: training for training in trainings}
    rows, expected = {}, {}
    for number, (name, fault) in enumerate(FAULTS.items()):
        training = by_name[training_for(name)]
        if training.name not in expected:
            training.finish(home, f"whole-{number}")
            expected[training.name], _ = training.result(home, f"whole-{number}")
        rows[name] = asdict(fault(FaultyRun(training, home, f"faulty-{number}"), expected[training.name]))
        print(name, rows[name], flush=True)
    return rows


def measure_nan(home: Path, trainings: Sequence[FaultTraining]) -> dict[str, Any]:
    """Set every term of every loss to NaN, once and then permanently; record the messages and the saved weights."""
    _ensure_tokenizer(home, trainings)
    rows = {}
    for training in trainings:
        for term in NAN_TERMS.get(training.name, ()):
            for steps, kind in (("22:23", "once"), ("22:", "for good")):
                row = with_nan(training, home, term, steps)
                rows[f"{training.name}: {term}, {kind}"] = row
                print(training.name, term, kind, row, flush=True)
    return rows


def with_nan(training: FaultTraining, home: Path, term: str, steps: str) -> dict[str, Any]:
    """Train with a loss term that is NaN in these steps; `term@1` is NaN on rank 1 alone."""
    run_name = nan_run(training, term, steps)
    options = (*training.options, *NAN_OPTIONS.get(training.name, ()), "--run.max_skipped_steps", "10")
    broken = replace(training, script="nan", options=(term, steps, training.script, *options))
    codes, out, err = broken.run(home, run_name)
    folder, said = home / "runs" / run_name, (out + err).replace("\r", "\n").splitlines()
    said = [line for line in said if line.startswith(("warning: step", "error:"))]
    saved = folder / training.artefact
    newest = sorted((folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    if not saved.exists() and not newest:
        raise RuntimeError(f"{training.name} with {term} of NaN has saved nothing: {err[-2000:]}")
    weights = load_file(saved if saved.exists() else newest[-1] / "model.safetensors")
    return {
        "status": max(codes, key=abs),
        "said": said,
        "saved": saved.name if saved.exists() else newest[-1].name,
        "finite": all(bool(tensor.isfinite().all()) for tensor in weights.values() if tensor.is_floating_point()),
        "traceback": "Traceback" in err,
    }


def nan_run(training: FaultTraining, term: str, steps: str) -> str:
    """Return the name of the run that `with_nan` makes."""
    return re.sub("[^a-z0-9]+", "-", f"nan-{training.name}-{term}-{steps}")


def _ensure_tokenizer(home: Path, trainings: Sequence[FaultTraining]) -> None:
    """Train the tokenizer that the priors start from, unless it is there."""
    if not (home / "runs/tokenizer").exists():
        trainings[0].finish(home, "tokenizer")


def _print_each(name: str, found: Iterable[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    for where, same in found:
        print(name, "killed", where, "equal" if same else "DIFFERENT", flush=True)
        yield where, same


def main(args: Sequence[str] | None = None) -> None:
    """Measure the requested sections, and write them."""
    parser = make_parser()
    config = parser.parse(args)
    check(config)
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        trainings = fault_trainings(home)
        measure = {
            "kills": lambda: measure_kills(home, trainings, config.trials, config.trainings, config.seed),
            "states": lambda: measure_states(home, trainings),
            "nan": lambda: measure_nan(home, trainings),
            "inputs": lambda: try_inputs(config.inputs, config.seed),
        }
        for section in config.sections:
            rows = measure[section]()
            _write(output, section, rows, provenance("faults", args) | machine() | {"seed": config.seed})
    print(fault_tables(json.loads(output.read_text())))
    print(output)


def _write(output: Path, section: str, rows: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Write a section's rows into the JSON file, and keep its other sections."""
    content = json.loads(output.read_text()) if output.exists() else {}
    if section == "kills":  # rows of several starts may stand side by side
        rows = {name: row | {key: protocol[key] for key in ("command", "commit")} for name, row in rows.items()}
        rows = content.get(section, {}).get("rows", {}) | rows
    content[section] = {"protocol": protocol, "rows": rows}
    output.write_text(json.dumps(content, indent=2) + "\n")
