"""Save the newest weights of a tokenizer's training that is not at its end as a tokenizer, outside its run folder."""

import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from jsonargparse import Namespace
from safetensors.torch import load
from torch import Tensor

from arcvq.checkpoints.checkpoint import checkpoints
from arcvq.checkpoints.manifest import read_stored, step_of, stored_files
from arcvq.compute.atomic_files import atomic_folder
from arcvq.runs.changed_parts import AVERAGES, model_file
from arcvq.training.tokenizer import make_tokenizer
from tokenizer.data.facts import dataset_info


@dataclass(frozen=True)
class NewestWeights:
    """The weights of a run's newest undamaged checkpoint.

    Attributes:
        step: completed steps.
        sha256: of the file of the model, hex.
        model: parameters and buffers of the model in training, by name.
        averages: EMA of its parameters, by name; empty where the run keeps none.
    """

    step: int
    sha256: str
    model: dict[str, Tensor]
    averages: dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A tokenizer after `step` steps of its training; `folder` holds it as a run folder does, in `tokenizer`."""

    folder: Path
    step: int


def take_snapshot(run: Path, config: Namespace, folder: Path) -> Snapshot | None:
    """Save the tokenizer that the training would save if it ended at its newest checkpoint; every process calls this.

    With `ema_decay` these are the averaged parameters. The run folder is only read, and may be in use.

    Args:
        run: the run folder.
        config: the options of the training.
        folder: where the snapshot gets a folder, named by run, step and weights: a result that is measured in there is
            that of no other weights.

    Returns:
        None if the run has no checkpoint.

    Raises:
        ValueError: the checkpoint does not fit to the options.
    """
    taken: list[Snapshot | None] = [None]
    if PartialState().is_main_process and (newest := read_newest(run)) is not None:
        place = folder / f"{run.name}-step{newest.step}-{newest.sha256[:8]}"
        if not (place / "tokenizer").is_dir():
            _save(newest, run, config, place / "tokenizer")
        taken = [Snapshot(place, newest.step)]
    if PartialState().num_processes > 1:
        broadcast_object_list(taken)
    return taken[0]


def read_newest(run: Path) -> NewestWeights | None:
    """Read the weights of the newest undamaged checkpoint; a line for each damaged one, which stays where it is."""
    damaged: set[Path] = set()
    while saved := [checkpoint for checkpoint in checkpoints(run) if checkpoint not in damaged]:
        newest = saved[-1]
        try:
            files = stored_files(newest)
            model = model_file(files)
            # As a whole: Windows deletes no file that is mapped, and the training deletes its old checkpoints.
            averages = load(read_stored(newest, AVERAGES)) if AVERAGES in files else {}
            return NewestWeights(step_of(newest), files[model], load(read_stored(newest, model)), averages)
        except FileNotFoundError:  # the training has just deleted it, and has newer ones
            continue
        except ValueError as error:
            print(f"warning: {newest} is damaged ({error}); it is passed over", file=sys.stderr)
            damaged.add(newest)
    return None


def _save(newest: NewestWeights, run: Path, config: Namespace, folder: Path) -> None:
    """Write the tokenizer of these weights."""
    tokenizer = make_tokenizer(config, dataset_info(config.data))
    averaged = config.ema_decay is not None
    if averaged != bool(newest.averages):
        has, set_to = ("averaged weights", "None") if newest.averages else ("no averaged weights", config.ema_decay)
        raise ValueError(f"the checkpoint of step {newest.step} of {run} has {has}, but ema_decay is {set_to}")
    names = {name for name, _ in tokenizer.named_parameters()}
    try:
        if averaged and names != newest.averages.keys():
            raise RuntimeError(f"averages of {min(names ^ newest.averages.keys())}")
        # Buffers have no average, as in the training's own export.
        tokenizer.load_state_dict(newest.model | newest.averages)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the checkpoint of step {newest.step} of {run} does not fit to the row: {reason}") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as unfinished:
        tokenizer.eval().save_pretrained(unfinished)
