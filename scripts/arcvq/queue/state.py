"""The state of a queue, in a file that is replaced as a whole after every change."""

import json
import socket
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from arcvq.compute.atomic_files import atomic_file

_FILE = "state.json"


@dataclass
class JobState:
    """What has become of a job.

    Attributes:
        state: waiting, running, done or failed.
        command: the command with which it began.
        commit: the commit of the code that it began with; None: the installed package.
        versions: of Python and the packages that it began with.
        attempts: number of its starts.
        begun: time of the first start, ISO 8601.
        hours: hours of work, of all starts.
        run: the run folder of a training.
        step: completed steps of the training.
        steps: steps that it has.
        expected_end: ISO 8601, by the speed since its last start.
        error: why it failed.
        process: its running process, as `identity` writes it.
    """

    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    command: str = ""
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    begun: str | None = None
    hours: float = 0.0
    run: str | None = None
    step: int = 0
    steps: int | None = None
    expected_end: str | None = None
    error: str | None = None
    process: dict[str, Any] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it has been started."""
        return self.attempts > 0


@dataclass
class QueueState:
    """The state of a queue.

    Attributes:
        folder: its folder.
        jobs: states by name; jobs that are no longer in the queue's file stay.
        process: the process that works it off, as `identity` writes it.
    """

    folder: Path
    jobs: dict[str, JobState] = field(default_factory=dict)
    process: dict[str, Any] | None = None

    @classmethod
    def load(cls, folder: Path) -> "QueueState":
        """Read a state; an empty one where there is none.

        Raises:
            ValueError: the file is not as this version writes it.
        """
        file = folder / _FILE
        if not file.is_file():
            return cls(folder)
        try:
            content = json.loads(file.read_text("utf-8"))
            jobs = {name: JobState(**state) for name, state in content["jobs"].items()}
            return cls(folder, jobs, content["process"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} is not the state of a queue of this version ({error}); move it away: trainings go on from "
                "their checkpoints without it, with the present code"
            ) from error

    def of(self, name: str) -> JobState:
        """Return the state of a job; a new one where there is none."""
        return self.jobs.setdefault(name, JobState())

    def save(self) -> None:
        """Replace the file."""
        content = {"process": self.process, "jobs": {name: asdict(job) for name, job in self.jobs.items()}}
        with atomic_file(self.folder / _FILE) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")

    @property
    def elsewhere(self) -> str | None:
        """The other machine on which its process was started; this one cannot tell whether it still runs there."""
        host = None if self.process is None else self.process["host"]
        return None if host == socket.gethostname() else host

    @property
    def is_worked_off(self) -> bool:
        """Whether its process runs, as far as this machine can tell."""
        return is_running(self.process)


def identity(number: int) -> dict[str, Any]:
    """Describe a process so that no later one of the same number is taken for it."""
    try:
        words = psutil.Process(number).cmdline()[1:]
    except psutil.Error:  # it has ended at once
        words = []
    return {"number": number, "host": socket.gethostname(), "words": words}


def is_running(process: dict[str, Any] | None) -> bool:
    """Tell whether a process that `identity` has described is still there; of another machine's it is not known: no."""
    if process is None or process["host"] != socket.gethostname():
        return False
    try:
        found = psutil.Process(process["number"])
        return found.status() != psutil.STATUS_ZOMBIE and found.cmdline()[1:] == process["words"]
    except psutil.Error:
        return False
