"""One process in a run folder: the second is refused, and one that is killed leaves no lock behind."""

import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

LOCK = ".lock"

# What a file system answers that has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Holds a folder, which is made where it is not there, until the process ends.

    The lock is the kernel's, of a file: on a file system that machines share, it holds among them. It is POSIX's and
    not flock's, which the processes that load data would inherit, and keep for a while when this one is killed.

    Raises:
        ValueError: another process holds it.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / LOCK).open("a+")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(f"note: the file system of {folder} has no locks; start no second run in it")
                return
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise ValueError(
                f"{folder} is in use by {self._holder()}; wait for it, end it, or choose another --run.name"
            ) from error

    def write_owner(self) -> None:
        """Writes down who holds the folder."""
        self._file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
        self._file.flush()

    def check(self) -> None:
        """Raises OSError where the folder is no longer the one that is held."""
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), (self._folder / LOCK).stat())
        except OSError:
            same = False
        if not same:
            raise OSError(f"the run folder {self._folder} is gone, or another one has taken its place")

    def start_over(self) -> "FolderLock":
        """Renames the folder, with all that is in it, and holds an empty one in its place."""
        number = 1
        while (aside := self._folder.with_name(f"{self._folder.name}.before-{number}")).exists():
            number += 1
        self._folder.rename(aside)
        print(f"note: what was in {self._folder} is in {aside}")
        anew = FolderLock(self._folder)
        self._file.close()
        return anew

    def _holder(self) -> str:
        try:
            holder = json.loads((self._folder / LOCK).read_text())
            return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
