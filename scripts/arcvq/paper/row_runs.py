"""The runs of a table's row, tokenizer and prior: train what is missing, then measure it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.conversion import codebook
from arcvq.paper.budget import Budget
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
from arcvq.paper.tables import Row
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
    """

    config: Namespace
    budget: Budget
    steps: int | None
    bench: Path
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """The name of the tokenizer's run."""
        return f"{self.row.config}-seed{self.seed}"

    @property
    def tokenizer(self) -> Training:
        """The training of the tokenizer."""
        length = {} if self.steps is None else {"optim.max_steps": self.steps, **save_intervals(self.steps)}
        options = as_arguments(length | run_options(self.bench, self.name, self.seed))
        arguments = [*tokenizer_arguments(self.config, self.budget, self.row.config), *options]
        return Training(train_tokenizer, "train-tokenizer", arguments, self.bench / self.name, "tokenizer")

    @property
    def tokenizer_used(self) -> Path:
        """The folder of the tokenizer that is measured, or that the prior takes: the trained or the reduced one."""
        codes = "" if self.row.codes is None else f"-{self.row.codes}-codes"
        return self.bench / f"{self.name}{codes}"

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

    def reduce(self) -> None:
        """Make the tokenizer with fewer codes, if the row measures that and it is missing."""
        folder = self.tokenizer_used
        if self.row.codes is not None and not folder.is_dir() and PartialState().is_main_process:
            options = [f"--codebook_size={self.row.codes}", f"--seed={self.seed}", f"--output={folder}"]
            codebook.main(["reduce", str(self.bench / self.name), *options])
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
        if prior is None:
            measured = ensure_measured(self.config, self.row, self.tokenizer_used)
            return replace(measured, history=history(self.bench / self.name))
        samples = prior.run / "evaluation" / "generation.png"
        return replace(ensure_measured(self.config, self.row, prior.run), samples=samples)


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
