"""Take trainings that were begun by `arcvq train-tokenizer` for rows of a table, if their settings are the rows'."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcvq.cli.announced_data import announced_splits
from arcvq.paper.trainings import Training
from arcvq.runs.settings import MAY_CHANGE, differing_settings, read_settings
from arcvq.training import tokenizer as train_tokenizer

# A given run may have its own: they change neither the data nor the mathematics of a step, or are compared otherwise,
# the name of the data by the fingerprint of the images.
_OWN = MAY_CHANGE - {"optim.max_steps"} | {
    "run.mixed_precision", "run.compile", "run.cuda_graph", "run.gradient_checkpointing", "run.deterministic",
    "data.name",
}  # fmt: skip
# These say nothing of how the weights were made.
_UNTOLD = {
    "run.name", "run.output_dir", "run.log_every", "run.sample_every", "run.checkpoint_every", "run.keep_checkpoints",
    "run.other_settings", "collapse.usage_below", "collapse.evaluations",
}  # fmt: skip


@dataclass(frozen=True)
class GivenRun:
    """A run folder that is given for a row.

    Attributes:
        row: the row's config, as `--rows` names it.
        run: the folder.
        seed: its seed.
    """

    row: str
    run: Path
    seed: int

    @property
    def training(self) -> Training:
        """The training as it was begun, to be resumed with its own settings."""
        place = [f"--run.output_dir={self.run.parent}", f"--run.name={self.run.name}"]
        return Training(
            train_tokenizer, "train-tokenizer", [f"--config={self.run / 'config.yaml'}", *place], self.run, "tokenizer"
        )


def find_given(
    given: Mapping[str, str | Sequence[str]], rows: Sequence[str], seeds: Sequence[int]
) -> dict[tuple[str, int], GivenRun]:
    """Find the given runs, by row and seed.

    Args:
        given: the option: run folders by the names of rows' configs.
        rows: the names that the table has.
        seeds: its seeds.

    Raises:
        ValueError: a row that the table does not have, a folder that is no run of a tokenizer, a seed that is not among
            `seeds`, or two runs of one seed.
    """
    found: dict[tuple[str, int], GivenRun] = {}
    for row, folder in _pairs(given):
        if row not in rows:
            raise ValueError(f"runs: the table has no row {row!r}; it has {', '.join(rows)}")
        run = Path(folder).expanduser()  # no shell expands what is in braces
        settings = read_settings(run / "config.yaml")
        if "model" not in settings or "seed" not in settings.get("run", {}):
            raise ValueError(
                f"runs: {row}: {folder} is no run of a tokenizer; name a folder that arcvq train-tokenizer writes"
            )
        seed = settings["run"]["seed"]
        if seed not in seeds:
            raise ValueError(f"runs: {row}: {folder} has seed {seed}; take --seeds '{sorted({*seeds, seed})}'")
        if (row, seed) in found:
            raise ValueError(
                f"runs: {row}: {found[row, seed].run} and {folder} both have seed {seed}; name one of them"
            )
        found[row, seed] = GivenRun(row, run, seed)
    return found


def check_given(run: Path, wanted: Training) -> dict[str, tuple[Any, Any]]:
    """Compare a given run with the training of its row.

    Args:
        run: the folder.
        wanted: the training that the table would make.

    Returns:
        The settings in which it may differ and does, by name: (the run's, the table's).

    Raises:
        ValueError: it differs otherwise, or its images are others; the message names what.
    """
    parser = wanted.script.make_parser()
    config = parser.parse(wanted.arguments)
    differing = differing_settings(read_settings(run / "config.yaml"), parser.settings(config))
    if others := [name for name in differing if name not in _OWN]:
        named = "; ".join(f"{name} is {differing[name][0]!r}, the row's {differing[name][1]!r}" for name in others)
        raise ValueError(
            f"{run} is another training than the row's ({named}); leave it out of --runs, or set the row's"
        )
    inputs = read_settings(run / "inputs.yaml")
    if inputs.get("data") != announced_splits(config.data).train.fingerprint():
        raise ValueError(
            f"{run} was trained on other images than those of {config.data.name!r}; name its data with --images, or "
            "leave it out of --runs"
        )
    return {name: both for name, both in differing.items() if name not in _UNTOLD}


def _pairs(given: Mapping[str, str | Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield row and folder of each run."""
    for row, folders in given.items():
        for folder in [folders] if isinstance(folders, str) else folders:
            yield row, folder
