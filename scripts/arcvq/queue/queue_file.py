"""Read the file of a queue: jobs by name, each with a command and the jobs that come before it."""

import difflib
import re
import shlex
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from arcvq.cli.configs import config_names, find_config
from arcvq.cli.safe_yaml import read_yaml

# A job's name is that of its log file.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_KEYS = ("command", "after")


@dataclass(frozen=True)
class Job:
    """A job of a queue.

    Attributes:
        name: its name.
        words: the verb and its options.
        after: names of the jobs that must be done before it.
    """

    name: str
    words: tuple[str, ...]
    after: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command in one line."""
        return shlex.join(self.words)


def find_queue(name: str) -> Path:
    """Find the file of a queue: a path that exists, or a name as queue/paper_length.yaml.

    Raises:
        ValueError: there is neither.
    """
    return find_config(name, config_names("queue"))


def read_jobs(file: Path) -> list[Job]:
    """Read a queue's jobs, in order of priority.

    Args:
        file: YAML with a mapping of names to `command`, a text, and `after`, a list of names that may be left out.

    Raises:
        ValueError: the file is no such mapping, `after` names no job, or jobs wait for each other.
    """
    jobs = [_job(file, name, entry) for name, entry in read_yaml(file).items()]
    if not jobs:
        raise ValueError(f"{file} has no job; write NAME: {{command: train-tokenizer ...}}")
    names = [job.name for job in jobs]
    for job in jobs:
        for other in job.after:
            if other not in names:
                close = difflib.get_close_matches(other, names, n=1) or names
                raise ValueError(f"job {job.name}: after names {other!r:.80}, which is no job; take {', '.join(close)}")
    try:
        TopologicalSorter({job.name: job.after for job in jobs}).prepare()
    except CycleError as error:
        raise ValueError(
            f"jobs wait for each other: {' before '.join(error.args[1])}; take one of them out of after"
        ) from error
    return jobs


def _job(file: Path, name: str, entry: Any) -> Job:
    """Check a job by itself."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{file}: job {name!r:.80}: a name is of letters, digits, _, - and ., as its log's is")
    if not isinstance(entry, dict):
        raise ValueError(f"job {name}: it holds {entry!r:.80}; write command: and the verb below the name")
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"job {name}: there is no {unknown[0]!r:.80} in a job; it has {' and '.join(_KEYS)}")
    command, after = entry.get("command"), entry.get("after", [])
    if not isinstance(command, str) or not command.strip():
        raise ValueError(f"job {name}: command must be a verb with its options, got {command!r:.80}")
    if not isinstance(after, list) or not all(isinstance(other, str) for other in after):
        raise ValueError(f"job {name}: after must be a list of jobs in brackets, got {after!r:.80}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"job {name}: command {command!r:.80}: {error}; close the quotation") from error
    words = words[1:] if words[0] == "arcvq" else words
    if not words:
        raise ValueError(f"job {name}: command must be a verb with its options, got {command!r:.80}")
    return Job(name, tuple(words), tuple(after))
