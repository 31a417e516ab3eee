"""Train what a table lacks: one run after the other in this process, or several beside each other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from arcvq.paper.parallel import run_beside_each_other
from arcvq.runs.settings import check_settings, read_settings


@dataclass(frozen=True)
class Training:
    """A training of a row, for one seed.

    Attributes:
        script: its module.
        verb: its command.
        arguments: its command line.
        run: its run folder.
        artefact: the folder of its result in there.
    """

    script: Any
    verb: str
    arguments: Sequence[str]
    run: Path
    artefact: str

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        return (self.run / self.artefact).is_dir()

    def check(self) -> None:
        """Raise ValueError if the result is that of other settings, which are named."""
        parser = self.script.make_parser()
        settings = parser.settings(parser.parse(self.arguments))
        check_settings(self.run / "config.yaml", settings)
        before, now = (which["optim"]["max_steps"] for which in (read_settings(self.run / "config.yaml"), settings))
        if before != now:
            raise ValueError(f"{self.run} holds a run of {before} steps, not of {now}; choose another --output_dir")


def train_missing(trainings: Iterable[Training], parallel: int) -> dict[Path, str]:
    """Train each run unless its result is there; one that fails does not stop the others.

    Args:
        trainings: in order; one that occurs twice is trained once.
        parallel: number of trainings at a time. One at a time trains in this process, or together with the others of
            `accelerate launch`.

    Returns:
        The errors of the trainings that failed, by run folder.

    Raises:
        ValueError: a result is that of other settings; or a training of several processes failed, as the others may
            know nothing of it, and would wait for this one.
    """
    by_run = {training.run: training for training in trainings}
    missing = [training for training in by_run.values() if not training.is_done]
    for training in by_run.values():
        if training.is_done:
            training.check()
    if parallel > 1:
        return run_beside_each_other({of.run: [of.verb, *of.arguments] for of in missing}, parallel)
    failed = {}
    for training in missing:
        try:
            training.script.main(training.arguments)
        except ValueError as error:
            if PartialState().num_processes > 1:
                raise
            failed[training.run] = str(error)
            print(f"failed: {training.run}: {error}", flush=True)
    return failed
