"""The checkpoints of a run folder: `checkpoints/step-<n>`, complete ones only.

Each holds what Accelerate saves of models, optimisers, scaler and random states, `ema.safetensors` where there is an
average, and `progress.json`: what the run counts, and the length and SHA-256 of every other file. It is written under
another name, brought to the disk, and then renamed: after a kill or a loss of power it is whole, or it is not there.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PROGRESS = "progress.json"

# What saving and loading raise: the file system's errors, and those of the formats' libraries.
_FILE_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)


@dataclass(frozen=True)
class Progress:
    """How far a run is, beside what its tensors say.

    Args:
        step: completed steps.
        processes: how many processes made the last of them.
        distribution: how accelerate distributed the model over them.
        counts: what the run counts, by name.
        bad_images: those that were found to be unusable, and skipped.
    """

    step: int
    processes: int
    distribution: str
    counts: dict[str, int] = field(default_factory=dict)
    bad_images: list[int] = field(default_factory=list)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first, as far as the lengths of their files tell."""
    return [checkpoint for checkpoint in _named(folder) if not _what_is_missing(checkpoint)]


def has_checkpoints(folder: Path) -> bool:
    """Whether a run folder holds any, complete or damaged."""
    return bool(_named(folder))


def step_of(checkpoint: Path) -> int:
    """The number of completed steps that a checkpoint holds."""
    return int(checkpoint.name.removeprefix("step-"))


def newest_intact(accelerator: Accelerator, folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written, on every process; a line for each that is passed over.

    Raises:
        OSError: a file that is there cannot be read: it is not known whether the checkpoint is damaged.
    """
    found = [None]
    if accelerator.is_main_process:
        for unfinished in sorted((folder / "checkpoints").glob(".step-*")):
            print(f"warning: {unfinished} was not finished; it is passed over", file=sys.stderr)
        damaged = False
        for checkpoint in reversed(_named(folder)):
            reason = _what_is_missing(checkpoint) or _what_has_changed(checkpoint)
            if not reason:
                found = [str(checkpoint)]
                break
            print(f"warning: {checkpoint} is damaged ({reason}); it is passed over", file=sys.stderr)
            damaged = True
            # Under another name it is counted neither as one that is kept nor as one to go on from.
            checkpoint.rename(_aside(checkpoint))
        if damaged and found == [None]:
            print(f"warning: {folder} has no other checkpoint; the run begins anew", file=sys.stderr)
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    return found[0] and Path(found[0])


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    step: int,
    averages: dict[str, Tensor],
    counts: dict[str, int],
    keep: int,
    bad_images: Sequence[int] = (),
) -> None:
    """Writes `step-<step>`, whole or not at all, and then deletes all but the newest `keep`; on every process.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    final = folder / "checkpoints" / f"step-{step}"
    unfinished = final.with_name(f".{final.name}")
    progress = Progress(step, accelerator.num_processes, accelerator.distributed_type.value, counts, [*bad_images])

    def prepare() -> None:
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run folder is gone")
        for left in (folder / "checkpoints").glob(".*step-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        unfinished.mkdir(parents=True)

    def finish() -> None:
        if averages:
            save_file(averages, unfinished / "ema.safetensors")
        files = {str(file.relative_to(unfinished)): _facts(file) for file in _files(unfinished)}
        content = asdict(progress) | {"files": files}
        (unfinished / PROGRESS).write_text(json.dumps(content | {"sha256": _hash(content)}, indent=1))
        for path in (unfinished / PROGRESS, *(path for path in unfinished.rglob("*") if path.is_dir()), unfinished):
            to_disk(path)
        if final.exists():  # a damaged one: the run has come here again
            shutil.rmtree(final)
        unfinished.rename(final)
        to_disk(final.parent)
        kept = checkpoints(folder)[-keep:]
        for old in _named(folder):
            if old not in kept and step_of(old) < step:
                shutil.rmtree(old)

    try:
        on_main(accelerator, prepare)
        _on_each(accelerator, lambda: accelerator.save_state(str(unfinished)))
        on_main(accelerator, finish)
    except _FILE_ERRORS as error:
        if accelerator.is_main_process and folder.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)  # a full disk has room again
        raise OSError(
            f"the checkpoint of step {step} cannot be written to {folder}: {_reason(error)}; {_left(folder)}"
        ) from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, averaged: bool) -> tuple[dict[str, Tensor], Progress]:
    """Loads the state of what `accelerator` has prepared; the averages, if the run keeps them, and the progress.

    Raises:
        ValueError: the checkpoint is not one of this run's models, or of another way of sharing them.
    """
    stored = _read_progress(checkpoint)
    progress = Progress(**{name: stored[name] for name in Progress.__dataclass_fields__})
    sharded = {progress.distribution, accelerator.distributed_type.value} & {"FSDP"}
    if sharded and progress.distribution != accelerator.distributed_type.value:
        raise ValueError(
            f"{checkpoint} is of a model distributed by {progress.distribution}, this run's is by "
            f"{accelerator.distributed_type.value}; launch it as before"
        )
    try:
        accelerator.load_state(str(checkpoint))
        averages = load_file(checkpoint / "ema.safetensors") if averaged else {}
    except (*_FILE_ERRORS, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]  # torch names the tensor in a later line
        raise ValueError(f"{checkpoint} does not fit to this run: {reason}") from error
    return averages, progress


def note_processes(before: int, now: int) -> None:
    """Says what is not as it would be on the number of processes that a run had before."""
    if before != now:
        print(
            f"note: processes so far: {before}, now: {now}. Each step has the same images, and a quantizer's noise; "
            "but sums are rounded otherwise, and a prior's noise and dropout are drawn by each process: the weights "
            "will not be the same bit for bit"
        )


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Does something on the main process, and then all go on; where it fails, all fail."""
    _on_each(accelerator, action if accelerator.is_main_process else lambda: None)


def _aside(checkpoint: Path) -> Path:
    """Where a damaged checkpoint goes until the next one is written."""
    aside = checkpoint.with_name(f".damaged-{checkpoint.name}")
    if aside.is_dir():
        shutil.rmtree(aside)
    return aside


def _named(folder: Path) -> list[Path]:
    """What is called a checkpoint, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if path.name.removeprefix("step-").isdecimal()), key=step_of)


def _read_progress(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. ValueError where that is not as it was written, by its own hash."""
    stored = json.loads((checkpoint / PROGRESS).read_text())
    if stored.pop("sha256", None) != _hash(stored):
        raise ValueError(f"{PROGRESS} is not as it was written")
    return stored


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _what_is_missing(checkpoint: Path) -> str | None:
    """What a checkpoint lacks to be complete, as far as names and lengths tell; None where it lacks nothing."""
    try:
        progress = _read_progress(checkpoint)
        lengths = {name: facts["bytes"] for name, facts in progress["files"].items()}
        if progress["step"] != step_of(checkpoint):
            return f"{PROGRESS} is of another step"
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no {PROGRESS}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{PROGRESS} is not as it was written"
    for name, length in lengths.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != length:
            return f"{name} has {file.stat().st_size} bytes and had {length}"
    return None


def _what_has_changed(checkpoint: Path) -> str | None:
    """The file that is not as it was written, if there is one."""
    for name, facts in _read_progress(checkpoint)["files"].items():
        with (checkpoint / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                return f"{name} is not as it was written"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _facts(file: Path) -> dict[str, int | str]:
    """What tells later whether the file is as it was written; it is brought to the disk."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
        return {"bytes": opened.tell(), "sha256": digest}


def to_disk(path: Path) -> None:
    """Brings a file's contents, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _on_each(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Does something on every process, and then all go on; where it fails on one, all fail, with its error."""
    failures: list[Exception | None] = [None]
    try:
        action()
    except _FILE_ERRORS as error:
        failures = [error]
    if accelerator.num_processes > 1:
        reasons = gather_object([None if failures[0] is None else _reason(failures[0])])
        others = [OSError(reason) for reason in reasons if reason]
        failures = failures if failures[0] else others
    if failures and failures[0]:
        raise failures[0]


def _reason(error: Exception) -> str:
    """The error's first line; of the file system's, what it is and of which file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # torch says where in its code
        return "the disk is full, or a file may not grow so large"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _left(folder: Path) -> str:
    """What a run can be resumed from."""
    complete = checkpoints(folder)
    if not complete:
        return "there is none before it"
    return f"mend that and start the same command again: it goes on from {complete[-1].name}"
