"""Describe a training for a table: how far it is, its hours, what computed it, and the commits of its code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvq.checkpoints.checkpoint import checkpoints
from arcvq.checkpoints.manifest import read_progress
from arcvq.runs.settings import read_settings
from arcvq.runs.starts import read_starts, starts_behind
from pipelines.figures.grids import read_metrics

FINISHED, NOT_BEGUN = "finished", "not begun"
NO_CHECKPOINT = "begun, no whole checkpoint"
FAILED = "failed"  # of a row without a number
NOT_RECORDED = "not recorded"
# What the hours are, for whoever reads a table.
HOURS = (
    "Hours are those of the training loop with its evaluations and checkpoints, by steps and images per second in the "
    "log; a start, loading the data, and steps that a kill took and a resumed run repeated are not in them"
)


@dataclass(frozen=True)
class TrainingCost:
    """Progress and cost of a training.

    Attributes:
        run: its run folder.
        state: finished, `step 480 of 24,000`, NO_CHECKPOINT, or not begun.
        step: completed steps of the measured weights.
        steps: steps of the whole training; None where the run folder does not tell.
        hours: of its logged steps (see HOURS); None without a log.
        logged_steps: the steps that `hours` are of, up to `step`; those since the last line are missing.
        processors: of its starts.
        threads: of each process, of its starts; of a run without them, that of its newest checkpoint.
        commits: of the starts that made its weights, oldest first.
        own_settings: settings of a run that was given, where they are not the table's: (the run's, the table's).
    """

    run: str
    state: str
    step: int = 0
    steps: int | None = None
    hours: float | None = None
    logged_steps: int = 0
    processors: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    commits: tuple[str, ...] = ()
    own_settings: dict[str, tuple[Any, Any]] | None = None


def cost_of(run: Path, step: int | None = None, own_settings: dict[str, tuple[Any, Any]] | None = None) -> TrainingCost:
    """Describe a training.

    Args:
        run: its run folder.
        step: step of the measured checkpoint; 0: it has none; None: the training is finished.
        own_settings: see TrainingCost.
    """
    optim = read_settings(run / "config.yaml").get("optim", {})
    steps = optim.get("max_steps")
    if step == 0:
        state = NO_CHECKPOINT if optim else NOT_BEGUN
        return TrainingCost(str(run), state, 0, steps, own_settings=own_settings)
    state = FINISHED if step is None else f"step {step:,} of {steps:,}"
    done = steps or 0 if step is None else step
    hours, logged = logged_hours(run, done, optim.get("batch_size", 0))
    starts = starts_behind(read_starts(run), done)
    commits = [start["commit"] or "no git checkout" for start in starts]
    if not starts or starts[0]["step"] > 0:
        commits.insert(0, NOT_RECORDED)
    processors = dict.fromkeys(start["processor"] for start in starts)
    threads = dict.fromkeys(start["threads"] for start in starts)
    if not starts and (saved := checkpoints(run)):
        threads = {read_progress(saved[-1]).threads: None}
    return TrainingCost(
        str(run),
        state,
        done,
        steps,
        hours,
        logged,
        tuple(processors) or (NOT_RECORDED,),
        tuple(threads),
        tuple(dict.fromkeys(commits)),
        own_settings,
    )


def logged_hours(run: Path, step: int, batch_size: int) -> tuple[float | None, int]:
    """Sum the hours of a training's steps up to `step`, by the images per second of each line of its log.

    The log of a resumed run has one line for a step, so a step counts once, at the speed at which it was made last.

    Returns:
        The hours, None without a line, and the number of steps that they are of.
    """
    log, seconds, done = run / "metrics.jsonl", 0.0, 0
    for record in read_metrics(log) if log.is_file() else []:
        if "images_per_second" in record and done < step:
            until = min(record["step"], step)
            seconds += (until - done) * batch_size / record["images_per_second"]
            done = until
    return (seconds / 3600 if done else None), done
