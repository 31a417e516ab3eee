"""What trainings of a tokenizer came to => a JSON file, and each run's curves and last reconstructions beside it.

python scripts/summarise.py runs/bsds500-arcvq-f8-gan runs/bsds500-arcvq-f8-pixels --output docs/adversarial.json

Of each run: its settings, how far its numbers were finite, their means and the last ones, what scripts/evaluate.py has
measured of its result, and what the reconstruction error did when the adversarial loss came in.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from command_line import ScriptParser, run_script
from provenance import provenance
from run_record import read_settings

from pipelines.pictures import plot_curves, read_metrics

# Steps over which the reconstruction error is averaged, before the adversarial loss comes in and at any time after.
WINDOW = 100


def main(args: Sequence[str] | None = None) -> None:
    """Reads the runs' logs, writes the JSON and the pictures, prints a line per run."""
    parser = ScriptParser("Summarise trainings of a tokenizer.")
    parser.add_argument("runs", type=str, nargs="+", help="run folders")
    parser.add_argument("--output", type=str, required=True, help="JSON file; the curves go beside it")
    config = parser.parse(args)
    output, results = Path(config.output), {}
    for folder in map(Path, config.runs):
        if not (folder / "metrics.jsonl").is_file():
            raise ValueError(f"{str(folder)!r} holds no metrics.jsonl; name the run folder of a training")
        results[folder.name] = summary(folder)
    output.parent.mkdir(parents=True, exist_ok=True)
    for folder in map(Path, config.runs):
        plot_curves(read_metrics(folder / "metrics.jsonl"), output.with_name(f"{output.stem}-{folder.name}-curves.png"))
        if pictures := sorted((folder / "samples").glob("step-*.png")):
            shutil.copy(pictures[-1], output.with_name(f"{output.stem}-{folder.name}.png"))
    output.write_text(json.dumps({"runs": results, **provenance("summarise", args)}, indent=2) + "\n")
    for name, result in results.items():
        print(f"{name}: not finite: {result['not_finite']}; adversarial entry: {json.dumps(result['entry'])}")
    print(f"summary: {output}")


def summary(folder: Path) -> dict[str, Any]:
    """Everything that is said of one run."""
    records = read_metrics(folder / "metrics.jsonl")
    values = [value for record in records for value in record.values()]
    evaluations = sorted((folder / "evaluation").rglob("*.json"))
    return {
        "settings": read_settings(folder / "config.yaml"),
        "steps": records[-1]["step"],
        "numbers_logged": len(values),
        "not_finite": sum(not math.isfinite(value) for value in values),
        "means": {name: _mean(records, name) for name in records[0] if name != "step"},
        "last": {name: value for record in records for name, value in record.items()},
        "entry": adversarial_entry(records),
        "evaluations": {
            str(file.relative_to(folder / "evaluation").with_suffix("")): json.loads(file.read_text())
            for file in evaluations
        },
    }


def adversarial_entry(records: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """What the reconstruction error did when the adversarial loss came in; None where it never did, or always was.

    `before` is the mean of `reconstruction` over the last WINDOW steps without that loss, `largest_after` the largest
    mean over as many steps with it, `jump` their ratio less 1.
    """
    logged = [record for record in records if "reconstruction" in record]
    without = [record for record in logged if "generator" not in record]
    heard = [record for record in logged if "generator" in record]
    if not without or not heard:
        return None
    start = without[-1]["step"]
    before = _mean([record for record in without if record["step"] > start - WINDOW])
    windows = [
        _mean([other for other in heard if record["step"] <= other["step"] < record["step"] + WINDOW])
        for record in heard
        if record["step"] + WINDOW <= heard[-1]["step"] + 1 or record is heard[0]
    ]
    return {"step": start, "before": before, "largest_after": max(windows), "jump": max(windows) / before - 1}


def _mean(records: Sequence[Mapping[str, float]], name: str = "reconstruction") -> float:
    values = [record[name] for record in records if name in record]
    return sum(values) / len(values)


if __name__ == "__main__":
    run_script(main)
