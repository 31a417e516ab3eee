"""Commands in processes of their own, each with its own log; they end when this process does."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

# Seconds that a training has to end its step and to save it.
_PATIENCE = 600.0

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class ChildProcess:
    """An `arcvq VERB ...` in a process.

    Attributes:
        process: the process, which leads a session of its own: a Ctrl-C reaches this command alone.
        log: the file with its output.
        begins: bytes that were in there before.
    """

    process: subprocess.Popen
    log: Path
    begins: int = 0

    @classmethod
    def start(
        cls, words: Sequence[str], log: Path, threads: int, packages: Iterable[str] | None = None, nice: int = 0
    ) -> "ChildProcess":
        """Start `arcvq WORDS`; it ends with this process.

        Args:
            words: verb and options.
            log: the file to which its output is added.
            threads: its CPU threads.
            packages: folders in which it looks for packages first; None: those of this process.
            nice: by how much its priority is lower, as of nice(1).
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(_CHILD), str(os.getpid()), str(nice), *words]
        packages = [path for path in sys.path if path] if packages is None else packages
        # PYTHONSAFEPATH: neither the child's own folder nor the present one, which may be a checkout, comes first.
        variables = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(packages), "PYTHONSAFEPATH": "1"}
        with log.open("ab") as output:
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            begins = os.fstat(output.fileno()).st_size
            process = subprocess.Popen(command, env=os.environ | variables, start_new_session=True, **options)
        return cls(process, log, begins)

    @property
    def error(self) -> str:
        """Why the process ended: its error, the signal that has ended it, or the last line of the log.

        Another command's training of the same run, which is why this one was refused, may write progress after the
        error.
        """
        with self.log.open("rb") as file:
            file.seek(self.begins)
            said = file.read().decode(errors="replace")
        if errors := re.findall(r"\berror: ([^\r\n]+)", said):
            return errors[-1]
        if (number := -self.process.returncode) > 0:  # as from the kernel where memory runs out
            return f"ended by {signal.Signals(number).name}"
        return (said.strip().splitlines() or [f"ended with status {self.process.returncode}"])[-1]


def end_all(children: Sequence[ChildProcess]) -> None:
    """Ask processes to save and end, and wait for them; kill one that does not."""
    for child in children:
        child.process.terminate()
    for child in children:
        try:
            child.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
