"""Write a file or a folder atomically: under its name lies the old content or all of the new one, never a part."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

# Threads that wait for the disk: a file system commits the files of all of them at once.
_SYNC_THREADS = 16


@contextmanager
def atomic_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden file next to `path` to write to; bring it to the disk and rename it to `path` at the end.

    If the body raises, the hidden file is removed and `path` keeps its old content. After a kill, `path` keeps it too,
    and the next write replaces the hidden file. The new file has the mode that the umask gives, whatever library writes
    it.

    Args:
        path: the file to write.
        shared: several processes may write `path` at the same time, so each gets a hidden file of its own.

    Raises:
        OSError: the file cannot be written.
    """
    unfinished = _hidden(path, f"{secrets.token_hex(4)}.tmp" if shared else "tmp")
    with unfinished.open("wb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        yield unfinished
        unfinished.chmod(mode)
        to_disk(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder next to `path` to fill; bring it to the disk and rename it to `path` at the end.

    A folder that is already at `path` is replaced as a whole. If the body or a rename raises, the hidden folder is
    removed and the old one stays. A kill between the two renames leaves the old folder under the name `.NAME.old`. All
    files get the mode that the umask gives.

    Raises:
        OSError: the folder cannot be written.
    """
    unfinished, old = _hidden(path, "tmp"), _hidden(path, "old")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    mode = unfinished.stat().st_mode & 0o666
    try:
        yield unfinished
        contents = list(unfinished.rglob("*"))
        for file in contents:
            if file.is_file():
                file.chmod(mode)
        all_to_disk([*contents, unfinished])
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
        try:
            unfinished.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Bring a file's content, or a folder's entries, to the disk (fsync)."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # and syncs only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def all_to_disk(paths: Iterable[Path]) -> None:
    """Bring many files and folders to the disk, several at a time."""
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:
        list(pool.map(to_disk, paths))


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{ending}")
