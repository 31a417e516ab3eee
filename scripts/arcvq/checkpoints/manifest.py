"""The list of a checkpoint's files, by which it is known later whether it is as it was written: progress.json."""

import errno
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from arcvq.compute.atomic_files import to_disk

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is, beside what its tensors say.

    Args:
        step: completed steps.
        processes: how many processes made the last of them.
        threads: how many threads of the CPU each of these computed with.
        distribution: how accelerate distributed the model over them.
        counts: what the run counts, by name.
        bad_images: those that were found to be unusable, and skipped.
    """

    step: int
    processes: int
    threads: int
    distribution: str
    counts: dict[str, int] = field(default_factory=dict)
    bad_images: list[int] = field(default_factory=list)


def step_of(checkpoint: Path) -> int:
    """The number of completed steps that a checkpoint holds."""
    return int(checkpoint.name.removeprefix("step-"))


def complete(checkpoint: Path, progress: Progress) -> None:
    """Writes the list of what is in the folder, and brings all of it to the disk."""
    files = {str(file.relative_to(checkpoint)): _facts(file) for file in _files(checkpoint)}
    content = asdict(progress) | {"files": files}
    (checkpoint / PROGRESS).write_text(json.dumps(content | {"sha256": _hash(content)}, indent=1))
    for path in (checkpoint / PROGRESS, *(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint):
        to_disk(path)


def read_progress(checkpoint: Path) -> Progress:
    """What a checkpoint says of itself. ValueError where another version of this project has written it."""
    stored = _read(checkpoint)
    if lacking := Progress.__dataclass_fields__.keys() - stored.keys():
        raise ValueError(
            f"{checkpoint} is of another version of this project: its {PROGRESS} has no {', '.join(sorted(lacking))}; "
            "go on with that version, or set run.other_settings start_over"
        )
    return Progress(**{name: stored[name] for name in Progress.__dataclass_fields__})


def _read(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint's list holds. ValueError where that is not as it was written, by its own hash."""
    stored = json.loads((checkpoint / PROGRESS).read_text())
    if stored.pop("sha256", None) != _hash(stored):
        raise ValueError(f"{PROGRESS} is not as it was written")
    return stored


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def what_is_missing(checkpoint: Path) -> str | None:
    """What a checkpoint lacks to be complete, as far as names and lengths tell; None where it lacks nothing."""
    try:
        progress = _read(checkpoint)
        lengths = {name: facts["bytes"] for name, facts in progress["files"].items()}
        if progress["step"] != step_of(checkpoint):
            return f"{PROGRESS} is of another step"
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no {PROGRESS}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{PROGRESS} is not as it was written"
    except OSError as error:
        return _unreadable(error)
    for name, length in lengths.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != length:
            return f"{name} has {file.stat().st_size} bytes and had {length}"
    return None


def what_has_changed(checkpoint: Path) -> str | None:
    """The file that is not as it was written, if there is one."""
    for name, facts in _read(checkpoint)["files"].items():
        try:
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    return f"{name} is not as it was written"
        except OSError as error:
            return _unreadable(error)
    return None


def _unreadable(error: OSError) -> str:
    """How damage to the disk, or a folder in a file's place, is told; other errors are raised again."""
    if error.errno not in (errno.EIO, errno.EISDIR):
        raise error  # whether the checkpoint is damaged is not known
    return f"{error.strerror}: {Path(error.filename or PROGRESS).name}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _facts(file: Path) -> dict[str, int | str]:
    """What tells later whether the file is as it was written; it is brought to the disk."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
        return {"bytes": opened.tell(), "sha256": digest}
