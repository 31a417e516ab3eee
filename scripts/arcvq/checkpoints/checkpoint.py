"""Save and load the checkpoints of a run folder: `checkpoints/step-<n>`.

A checkpoint holds what accelerate saves (models, optimizers, scaler, random states), `ema.safetensors` if the run keeps
an average, `own_<rank>.safetensors` of each process, and `progress.json` with the run's counters and the length and
SHA-256 of every other file. It is written under a hidden name, brought to the disk, and then renamed: after a kill or a
power failure it is complete, or it does not exist.
"""

import errno
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcvq.checkpoints.collective import FILE_ERRORS, on_each, on_main, reason_of
from arcvq.checkpoints.manifest import (
    Progress,
    changed_file,
    missing_file,
    read_progress,
    step_of,
    write_manifest,
)
from arcvq.compute.atomic_files import to_disk


@dataclass(frozen=True)
class RunState:
    """The state of a run, in addition to what accelerate saves.

    Args:
        progress: how far the run is.
        averages: EMA of the model's parameters, by name; empty if the run keeps none.
        own: sums of this process that are not logged yet, by group and name; empty after a change in the number of
            processes.
    """

    progress: Progress
    averages: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a run folder, oldest first; only the lengths of their files are checked."""
    return [checkpoint for checkpoint in _named(folder) if not missing_file(checkpoint)]


def has_checkpoints(folder: Path) -> bool:
    """Tell whether a run folder holds any checkpoint, complete or damaged."""
    return bool(_named(folder))


def newest_intact(accelerator: Accelerator, folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint, on every process; print a line for each one that is skipped.

    Raises:
        OSError: a file exists but cannot be read, so nobody knows whether the checkpoint is damaged.
    """
    newest = [None]
    if accelerator.is_main_process:
        for unfinished in sorted((folder / "checkpoints").glob(".step-*")):
            print(f"warning: {unfinished} was not finished; it is passed over", file=sys.stderr)
        damaged = False
        for checkpoint in reversed(_named(folder)):
            reason = missing_file(checkpoint) or changed_file(checkpoint)
            if not reason:
                newest = [str(checkpoint)]
                break
            print(f"warning: {checkpoint} is damaged ({reason}); it is passed over", file=sys.stderr)
            damaged = True
            # Under another name it is neither counted among those to keep nor resumed from.
            checkpoint.rename(_aside(checkpoint))
        if damaged and newest == [None]:
            print(f"warning: {folder} has no other checkpoint; the run begins anew", file=sys.stderr)
    if accelerator.num_processes > 1:
        broadcast_object_list(newest)
    return newest[0] and Path(newest[0])


def save_checkpoint(accelerator: Accelerator, folder: Path, state: RunState, keep: int) -> None:
    """Write `step-<n>`, complete or not at all, then delete all but the newest `keep`; every process calls this.

    An old checkpoint that cannot be deleted gives a warning.

    Raises:
        OSError: the checkpoint cannot be written; the older ones are unchanged.
    """
    step = state.progress.step
    final = folder / "checkpoints" / f"step-{step}"
    unfinished = final.with_name(f".{final.name}")

    def prepare() -> None:
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run folder is gone")
        for left in (folder / "checkpoints").glob(".*step-*"):
            _remove(left)
        unfinished.mkdir(parents=True)

    def write() -> None:
        accelerator.save_state(str(unfinished))
        save_file(_flat(state.own), unfinished / _own_file(accelerator))

    def finish() -> None:
        if state.averages:
            save_file(state.averages, unfinished / "ema.safetensors")
        write_manifest(unfinished, state.progress)
        if final.exists():  # a damaged one, whose step the run has repeated
            _remove(final)
        unfinished.rename(final)
        to_disk(final.parent)

    try:
        on_main(accelerator, prepare)
        on_each(accelerator, write)
        on_main(accelerator, finish)
        on_main(accelerator, lambda: _prune(folder, step, keep))
    except FILE_ERRORS as error:
        if accelerator.is_main_process and folder.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)  # a full disk has room again
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {folder}: {reason_of(error)}; {_left(folder)}"
        ) from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, averaged: bool, folder: Path | None = None) -> RunState:
    """Load the state of all modules that `accelerator` has prepared, and return the rest.

    Args:
        accelerator: has prepared the run's modules and optimizers.
        checkpoint: folder of the checkpoint.
        averaged: whether the run keeps averages.
        folder: where accelerate's files are read instead, if the run's modules have changed.

    Raises:
        ValueError: the checkpoint does not fit the run's modules, or was distributed in another way.
    """
    progress = read_progress(checkpoint)
    sharded = {progress.distribution, accelerator.distributed_type.value} & {"FSDP"}
    if sharded and progress.distribution != accelerator.distributed_type.value:
        raise ValueError(
            f"{checkpoint} is of a model distributed by {progress.distribution}, this run's is by "
            f"{accelerator.distributed_type.value}; launch it as before"
        )
    try:
        accelerator.load_state(str(folder or checkpoint))
        averages = load_file(checkpoint / "ema.safetensors") if averaged else {}
        own = load_file(checkpoint / _own_file(accelerator)) if progress.processes == accelerator.num_processes else {}
    except (*FILE_ERRORS, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]  # torch names the tensor on a later line
        raise ValueError(
            f"{checkpoint} does not fit to this run: {reason}; set what the model is made of as it was, or start over: "
            "run.other_settings start_over, or another run.name"
        ) from error
    # Copies, or on a CPU the file would stay mapped, and Windows would not delete the checkpoint later.
    own = {name: value.to(accelerator.device, copy=True) for name, value in own.items()}
    return RunState(progress, averages, _grouped(own))


def note_processes(before: Progress, processes: int, threads: int) -> None:
    """Print a note if the number of processes, or of CPU threads in each, has changed since the checkpoint."""
    if before.threads != threads:
        print(
            f"note: threads of each process so far: {before.threads}, now: {threads}. Sums are rounded otherwise: the "
            f"weights will not be the same bit for bit; with --run.threads {before.threads} they would be"
        )
    if before.processes != processes:
        print(
            f"note: processes so far: {before.processes}, now: {processes}. Each step has the same images and noise; "
            "but sums are rounded otherwise, and dropout inside a network is drawn by each process: the weights will "
            "not be the same bit for bit"
        )


def _own_file(accelerator: Accelerator) -> str:
    return f"own_{accelerator.process_index}.safetensors"


def _flat(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}


def _grouped(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for path, value in flat.items():
        group, _, name = path.partition("/")
        groups.setdefault(group, {})[name] = value
    return groups


def _aside(checkpoint: Path) -> Path:
    """Return the name of a damaged checkpoint, under which it stays until the next one is written."""
    aside = checkpoint.with_name(f".damaged-{checkpoint.name}")
    if aside.exists():
        _remove(aside)
    return aside


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete the checkpoints before `step`, except for the newest `keep` complete ones."""
    kept = checkpoints(folder)[-keep:]
    for old in _named(folder):
        if old not in kept and step_of(old) < step:
            try:
                _remove(old)
            except OSError as error:
                print(f"warning: {old} cannot be deleted: {reason_of(error)}", file=sys.stderr)


def _remove(path: Path) -> None:
    """Delete a folder with its contents, a file, or a link without its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _named(folder: Path) -> list[Path]:
    """List all paths that are named like a checkpoint, oldest first."""
    paths = (folder / "checkpoints").glob("step-*")
    named = (path for path in paths if path.name.removeprefix("step-").isdecimal())
    return sorted((path for path in named if path.name == f"step-{step_of(path)}"), key=step_of)


def _left(folder: Path) -> str:
    """Say which checkpoint the run can resume from."""
    saved = checkpoints(folder)
    if not saved:
        return "there is none before it"
    return f"mend that and start the same command again: it goes on from {saved[-1].name}"
