"""Write and check a checkpoint's manifest, progress.json: counters, and the lengths and SHA-256 of all files."""

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
    """Record how far a run is.

    Args:
        step: completed steps.
        processes: number of processes of the last step.
        threads: CPU threads of each process.
        distribution: accelerate's distributed type.
        counts: the run's counters, by name.
        bad_images: indices of unusable images, which are skipped.
    """

    step: int
    processes: int
    threads: int
    distribution: str
    counts: dict[str, int] = field(default_factory=dict)
    bad_images: list[int] = field(default_factory=list)


def step_of(checkpoint: Path) -> int:
    """Return the number of completed steps from a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))


def write_manifest(checkpoint: Path, progress: Progress) -> None:
    """Write the manifest of a folder, and bring the folder to the disk."""
    files = {file.relative_to(checkpoint).as_posix(): _sync_and_hash(file) for file in _files(checkpoint)}
    content = asdict(progress) | {"files": files}
    (checkpoint / PROGRESS).write_text(json.dumps(content | {"sha256": _hash(content)}, indent=1))
    for path in (checkpoint / PROGRESS, *(path for path in checkpoint.rglob("*") if path.is_dir()), checkpoint):
        to_disk(path)


def read_progress(checkpoint: Path) -> Progress:
    """Read a checkpoint's progress.

    Raises:
        ValueError: another version of this project has written it.
    """
    stored = _read(checkpoint)
    if lacking := Progress.__dataclass_fields__.keys() - stored.keys():
        raise ValueError(
            f"{checkpoint} is of another version of this project: its {PROGRESS} has no {', '.join(sorted(lacking))}; "
            "go on with that version, or set run.other_settings start_over"
        )
    return Progress(**{name: stored[name] for name in Progress.__dataclass_fields__})


def stored_files(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint, by name, as the manifest has it. ValueError if it is damaged."""
    return {name: facts["sha256"] for name, facts in _read(checkpoint)["files"].items()}


def read_stored(checkpoint: Path, name: str) -> bytes:
    """Read a file of a checkpoint as a whole. ValueError if it is not as it was written."""
    content = (checkpoint / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != stored_files(checkpoint)[name]:
        raise ValueError(f"{name} is not as it was written")
    return content


def _read(checkpoint: Path) -> dict[str, Any]:
    """Read the manifest. ValueError if its own hash does not match."""
    stored = json.loads((checkpoint / PROGRESS).read_text())
    if stored.pop("sha256", None) != _hash(stored):
        raise ValueError(f"{PROGRESS} is not as it was written")
    return stored


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def missing_file(checkpoint: Path) -> str | None:
    """Describe the first file that is missing or has another length; return None if there is none."""
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


def changed_file(checkpoint: Path) -> str | None:
    """Describe the first file whose SHA-256 has changed; return None if there is none."""
    for name, facts in _read(checkpoint)["files"].items():
        try:
            with (checkpoint / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    return f"{name} is not as it was written"
        except OSError as error:
            return _unreadable(error)
    return None


def _unreadable(error: OSError) -> str:
    """Describe a damaged disk, or a folder where a file should be; raise any other error again."""
    if error.errno not in (errno.EIO, errno.EISDIR):
        raise error  # the checkpoint may be intact
    return f"{error.strerror}: {Path(error.filename or PROGRESS).name}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_and_hash(file: Path) -> dict[str, int | str]:
    """Bring a file to the disk, and return its length and SHA-256."""
    with file.open("rb+" if os.name == "nt" else "rb") as opened:  # Windows syncs only what may be written
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        os.fsync(opened.fileno())
        return {"bytes": opened.tell(), "sha256": digest}
