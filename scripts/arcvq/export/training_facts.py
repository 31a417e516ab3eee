"""Collect from a run folder how a model was trained."""

from pathlib import Path
from typing import Any

from arcvq.runs.settings import read_settings
from arcvq.runs.starts import STARTS, read_starts
from pipelines.figures.grids import read_metrics

# Options that say where a run lies on its machine, and no more.
_OF_THE_PLACE = ("output_dir", "threads", "other_settings")


def finished_settings(run: Path) -> dict[str, Any]:
    """Read the settings of a run that is at its end.

    Raises:
        ValueError: it is no run folder, or its training is not at its last step.
    """
    settings = read_settings(run / "config.yaml")
    if not settings:
        raise ValueError(f"{str(run)!r} is no run folder, as it has no config.yaml; name what a training has written")
    if missing := [name for name in ("data", "optim", "run") if not isinstance(settings.get(name), dict)]:
        raise ValueError(f"{run / 'config.yaml'} is not as a training writes it: it has no section {missing[0]}")
    log = run / "metrics.jsonl"
    done = max((record["step"] for record in read_metrics(log)), default=0) if log.is_file() else 0
    if done != settings["optim"]["max_steps"]:
        raise ValueError(
            f"{run} is at step {done} of {settings['optim']['max_steps']} by its metrics.jsonl; start its training "
            "again to complete it"
        )
    return settings


def training_facts(run: Path, settings: dict[str, Any], told: str | None) -> dict[str, Any]:
    """Describe a finished training.

    Args:
        run: the run folder.
        settings: its settings.
        told: commit and machine in the user's words, for a run from before `starts.jsonl`.

    Returns:
        steps, images per step, seed, precision, hours, starts (step, commit and machine of each), told, fingerprints
        of the inputs.

    Raises:
        ValueError: the run folder has `starts.jsonl`, and something else is told.
    """
    starts = read_starts(run)
    if starts and told is not None:
        raise ValueError(f"{run / STARTS} says where the run was trained; leave out --trained_on {told!r:.80}")
    optim = settings["optim"]
    return {
        "steps": optim["max_steps"],
        "batch_size": optim["batch_size"],
        "seed": settings["run"]["seed"],
        "mixed_precision": settings["run"]["mixed_precision"],
        "ema_decay": settings.get("ema_decay"),
        "hours": round(_seconds(run / "metrics.jsonl", optim["batch_size"]) / 3600, 3),
        "starts": starts,
        "told": told,
        "inputs": read_settings(run / "inputs.yaml"),
    }


def public_settings(settings: dict[str, Any], data_name: str, folder: str) -> dict[str, Any]:
    """Return a run's settings for the public: without its place, with public names of its data and its tokenizer.

    A prior takes the tokenizer in its own exported pipeline, `folder`.
    """
    changed = {"data": settings["data"] | {"name": data_name}}
    changed["run"] = {name: value for name, value in settings["run"].items() if name not in _OF_THE_PLACE}
    return settings | changed | ({"tokenizer": folder} if "tokenizer" in settings else {})


def _seconds(log: Path, batch_size: int) -> float:
    """Sum up the duration of all steps that the log keeps, with the evaluations between them."""
    seconds, before = 0.0, 0
    for record in read_metrics(log):
        if "images_per_second" in record:
            seconds += (record["step"] - before) * batch_size / record["images_per_second"]
            before = record["step"]
    return seconds
