"""The runs of a table's row, tokenizer and prior: train what is missing, then measure it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.checkpoints.checkpoint import has_checkpoints
from arcvq.conversion import codebook
from arcvq.paper.budget import Budget
from arcvq.paper.given_runs import GivenRun, check_given
from arcvq.paper.rows import (
    RowNumbers,
    as_arguments,
    config_file,
    data_options,
    ensure_measured,
    history,
    prior_options,
    run_options,
    save_intervals,
    tokenizer_arguments,
)
from arcvq.paper.snapshots import take_snapshot
from arcvq.paper.tables import Row
from arcvq.paper.training_cost import cost_of
from arcvq.paper.trainings import Training, train_missing
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer


@dataclass(frozen=True)
class RowRuns:
    """The runs of a row for a seed.

    Args:
        config: the options of the command.
        budget: the budget of the tokenizers.
        steps: their length; None: what their configs say.
        bench: the folder of all runs.
        row: the row.
        seed: the seed.
        given: the tokenizer's run, if one was begun elsewhere.
    """

    config: Namespace
    budget: Budget
    steps: int | None
    bench: Path
    row: Row
    seed: int
    given: GivenRun | None = None

    @property
    def name(self) -> str:
        """The name of the tokenizer's run."""
        return f"{self.row.config}-seed{self.seed}"

    @property
    def tokenizer(self) -> Training:
        """The training of the tokenizer, the given one or the table's own."""
        return self.own_tokenizer if self.given is None else self.given.training

    @cached_property
    def given_settings(self) -> dict[str, tuple[Any, Any]] | None:
        """Settings of the given run that are not the table's, see `check_given`; None without a given run."""
        return None if self.given is None else check_given(self.given.run, self.own_tokenizer)

    @property
    def own_tokenizer(self) -> Training:
        """The training of the tokenizer as the table makes it."""
        length = {} if self.steps is None else {"optim.max_steps": self.steps, **save_intervals(self.steps)}
        options = as_arguments(length | run_options(self.bench, self.name, self.seed))
        arguments = [*tokenizer_arguments(self.config, self.budget, self.row.config), *options]
        return Training(train_tokenizer, "train-tokenizer", arguments, self.bench / self.name, "tokenizer")

    @property
    def tokenizer_used(self) -> Path:
        """The folder of the tokenizer that is measured, or that the prior takes: the trained or the reduced one."""
        trained = self.tokenizer.run
        return trained if self.row.codes is None else trained.with_name(f"{trained.name}-{self.row.codes}-codes")

    @property
    def prior(self) -> Training | None:
        """The training of the prior, if the row has one."""
        config, prior = self.config, self.row.prior
        if prior is None:
            return None
        name, steps = f"{self.name}-{prior}-{config.prior_budget}", Budget.parse(config.prior_budget).steps
        options = prior_options(config, prior) | run_options(self.bench, name, self.seed)
        options |= {"tokenizer": self.tokenizer_used}
        options |= {} if steps is None else save_intervals(steps)
        options |= data_options(config)
        arguments = [f"--config={config_file(config.data, prior)}", *as_arguments(options)]
        script = {"ldm": train_ldm, "pixelcnn": train_pixelcnn}[prior]
        return Training(script, f"train-{prior}", arguments, self.bench / name, "pipeline")

    def note_given(self) -> None:
        """Compare a given run with the row, and print what it is. Raises ValueError if it is another training."""
        own_settings = self.given_settings
        if own_settings is not None and PartialState().is_main_process:
            own = ", ".join(f"{name} {its} (the row: {row})" for name, (its, row) in own_settings.items())
            print(f"{self.name} is {self.given.run}{f'; it has {own}' if own else ''}")

    def reduce(self) -> None:
        """Make the tokenizer with fewer codes, if the row measures that and it is missing."""
        folder = self.tokenizer_used
        if self.row.codes is not None and not folder.is_dir() and PartialState().is_main_process:
            options = [f"--codebook_size={self.row.codes}", f"--seed={self.seed}", f"--output={folder}"]
            codebook.main(["reduce", str(self.tokenizer.run), *options])
        PartialState().wait_for_everyone()

    def numbers(self, failed: Mapping[Path, str]) -> RowNumbers:
        """Return the numbers of the trained row; measure what is missing.

        Args:
            failed: the errors of trainings that failed, by run folder.

        Raises:
            ValueError: a training of this row is among them, or its result cannot be measured.
        """
        prior = self.prior
        for training in (self.tokenizer, prior):
            if training is not None and training.run in failed:
                raise ValueError(failed[training.run])
        costs = {"tokenizer": cost_of(self.tokenizer.run, own_settings=self.given_settings)}
        if prior is None:
            measured = ensure_measured(self.config, self.row, self.tokenizer_used)
            return replace(measured, history=history(self.tokenizer.run), trainings=costs)
        costs |= {self.row.prior: cost_of(prior.run)}
        samples = prior.run / "evaluation" / "generation.png"
        return replace(ensure_measured(self.config, self.row, prior.run), samples=samples, trainings=costs)

    def numbers_so_far(self) -> RowNumbers:
        """Return the numbers of the tokenizer as it is: of its result, or of its newest checkpoint; train nothing.

        Raises:
            ValueError: the folder holds a run of other settings, or its tokenizer cannot be measured.
        """
        training = self.tokenizer
        if training.is_done:
            training.check()
            return self.numbers({})
        if has_checkpoints(training.run):
            training.check()
        row = self.own_tokenizer.script.make_parser().parse(self.own_tokenizer.arguments)
        snapshot = take_snapshot(training.run, row, self.bench / "unfinished")
        cost = cost_of(training.run, 0 if snapshot is None else snapshot.step, self.given_settings)
        found = RowNumbers({}, None) if snapshot is None else ensure_measured(self.config, self.row, snapshot.folder)
        return replace(found, history=history(training.run), trainings={"tokenizer": cost})


def train_rows(rows: Sequence[RowRuns], parallel: int) -> dict[Path, str]:
    """Train all tokenizers that are missing, then the priors on them.

    Returns:
        The errors of the trainings that failed, by run folder. A prior is not tried on a tokenizer that failed.
    """
    failed = train_missing([row.tokenizer for row in rows], parallel)
    rows = [row for row in rows if row.tokenizer.run not in failed]
    for row in rows:
        row.reduce()
    return failed | train_missing([row.prior for row in rows if row.prior is not None], parallel)
