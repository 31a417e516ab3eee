"""How long a table's trainings are: 20m, 2h, 5epochs, 1200steps or full -> optimiser steps of each of them."""

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

# Steps that are timed for each config, after one that is not.
_TIMED_STEPS = 3
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Budget:
    """What `text` asks for: seconds of all trainings together, or steps or epochs of each; none of them: full.

    Raises:
        ValueError: it says something else.
    """

    text: str
    seconds: float | None = None
    steps: int | None = None
    epochs: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From the command line."""
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
        """Whether trainings are as long as the paper's."""
        return self.seconds is self.steps is self.epochs is None


def steps_of(budget: Budget, trainings: Sequence[Sequence[str]], seeds: int, file: Path) -> int:
    """The steps of each training, given by its command line, for so many seeds of each.

    A time is divided by what a step of each takes here, measured once: `file` keeps the answer, so that what is trained
    later under the same budget is as long, and a run that is started again goes on.

    Raises:
        ValueError: there is no time for a step of each.
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
