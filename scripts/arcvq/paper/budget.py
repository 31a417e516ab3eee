"""Convert a budget of a table's trainings (20m, 2h, 5epochs, 1200steps, full) into optimizer steps of each."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from tqdm.auto import tqdm

from arcvq.compute.atomic_files import atomic_file
from arcvq.planning.timing import step_times
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.data.facts import dataset_info

# Timed steps of each config, after one warm-up step.
_TIMED_STEPS = 3
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Budget:
    """The length of a table's trainings; all None is the full length of the paper.

    Attributes:
        text: the budget as given on the command line.
        seconds: seconds of all trainings together.
        steps: steps of each training.
        epochs: epochs of each training.
    """

    text: str
    seconds: float | None = None
    steps: int | None = None
    epochs: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse the budget of the command line. Raises ValueError for anything else."""
        if text == "full":
            return cls(text)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d|steps?|epochs?)", text)
        number, unit = (float(found[1]), found[2].rstrip("s") or "s") if found else (0.0, "")
        if not number or (unit == "step" and number % 1):
            raise ValueError(
                f"budget is a time for all trainings, as 20m or 2h, or 5epochs, 1200steps or full, got {text!r}"
            )
        if unit == "step":
            return cls(text, steps=int(number))
        if unit == "epoch":
            return cls(text, epochs=number)
        return cls(text, seconds=number * _SECONDS[unit])

    @property
    def is_full(self) -> bool:
        """Tell whether trainings have the length of the paper's."""
        return self.seconds is self.steps is self.epochs is None


def steps_of(budget: Budget, trainings: Sequence[Sequence[str]], seeds: int, file: Path) -> int:
    """Return the optimizer steps of each training.

    A budget of time is divided by the measured duration of a step of each training. `file` stores the result, so that
    later trainings under the same budget have the same length, and a run that is started again resumes.

    Args:
        budget: the budget.
        trainings: command line of each training.
        seeds: number of seeds of each training.
        file: JSON file of the steps under a budget of time.

    Raises:
        ValueError: the time does not suffice for one step of each training.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.epochs is not None:  # all trainings have one data set and one batch
        config = train_tokenizer.make_parser().parse(list(trainings[0]))
        images = dataset_info(config.data)
        return max(1, round(budget.epochs * (len(images) // config.optim.batch_size)))
    if file.exists():
        kept = json.loads(file.read_text())
        if PartialState().is_main_process:
            timed = f"{len(kept['seconds'])} trainings of {kept['seeds']} seeds"
            print(
                f"{kept['steps']:,} steps each, as {file} has them for {timed}; without that file they are timed anew"
            )
        return kept["steps"]
    bar = tqdm(trainings, desc="timing a step of each")
    times = [min(step_times(train_tokenizer, arguments, 1 + _TIMED_STEPS)[1:]) for arguments in bar]
    steps = int(budget.seconds / (seeds * sum(times)))
    if steps < 1:
        raise ValueError(
            f"budget {budget.text} is less than a step of each training, {seeds * sum(times):.0f} s; raise it"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    named = {" ".join(arguments): seconds for arguments, seconds in zip(trainings, times, strict=True)}
    content = {"budget": budget.text, "seeds": seeds, "steps": steps, "seconds": named}
    with atomic_file(file) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2))
    return steps
