"""Lock a run folder for one process; a killed process leaves no lock behind."""

import errno
import json
import os
import socket
import sys
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_FAR_BYTE = 2**30  # Windows locks bytes and not files, and nobody could read a locked one

# Error numbers of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Lock a folder until the process ends; create it if it is missing.

    The lock is the kernel's lock of a file, which also works between machines that share the file system. It is a POSIX
    lock (lockf): the processes that load data would inherit one of flock, and keep it for a while after a kill.

    Args:
        folder: the folder.
        choice: the option that names another folder.

    Raises:
        ValueError: another process holds the lock.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, choice: str = "--run.name"):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / LOCK).open("a+")
        weakref.finalize(self, self._file.close)  # Python warns of files that it has to close by itself
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(f"note: the file system of {folder} has no locks; start no second run in it")
                return
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise ValueError(
                f"{folder} is in use by {self._holder()}; wait for it, end it, or choose another {choice}"
            ) from error

    def write_owner(self) -> None:
        """Write this process's id, host and start time into the lock file."""
        self._file.truncate(0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": now}) + "\n")
        self._file.flush()

    def check(self) -> None:
        """Raise OSError if the folder has been removed or replaced since it was locked."""
        try:
            same = os.path.samestat(os.fstat(self._file.fileno()), (self._folder / LOCK).stat())
        except OSError:
            same = False
        if not same:
            raise OSError(f"the run folder {self._folder} is gone, or another one has taken its place")

    def start_over(self) -> "FolderLock":
        """Rename the folder with all its contents, and lock an empty one under the old name."""
        number = 1
        while (aside := self._folder.with_name(f"{self._folder.name}.before-{number}")).exists():
            number += 1
        if sys.platform == "win32":
            self._file.close()  # Windows renames no folder of an open file, so that for a moment nobody holds this one
        self._folder.rename(aside)
        print(f"note: what was in {self._folder} is in {aside}")
        new_lock = FolderLock(self._folder)
        self._file.close()
        return new_lock

    def _holder(self) -> str:
        try:
            holder = json.loads((self._folder / LOCK).read_text())
            return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def _lock(file: TextIO) -> None:
    """Lock a file without waiting. Raises OSError if another process holds the lock."""
    if sys.platform == "win32":
        file.seek(_FAR_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
