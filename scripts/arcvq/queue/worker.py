"""Work a queue off: start the jobs in order, take up again those that got further, and end with all of them saved."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from arcvq.checkpoints.checkpoint import checkpoints
from arcvq.checkpoints.manifest import step_of
from arcvq.queue.pace import Pace
from arcvq.queue.queue_file import Job
from arcvq.queue.state import JobState, QueueState, identity
from arcvq.queue.table import Display, unfinished_before
from arcvq.runs.child_process import ChildProcess, end_all
from arcvq.runs.log import last_step
from arcvq.runs.signals import Stopping

# Seconds between two looks at the processes.
_LOOK = 0.5
# How much of the hours of work, and of what a stopped queue shows, a kill may lose.
_SAVE_EVERY = timedelta(minutes=1)


@dataclass
class _Running:
    """A running job: its process, and what it began this start with."""

    child: ChildProcess
    since: datetime
    hours: float
    saved: int
    pace: Pace = field(default_factory=Pace)


class Worker:
    """Works a queue off.

    Args:
        jobs: in order of priority.
        state: of the queue, with an entry for each job; changed and saved as they go.
        launch: starts a job's process; an OSError or ValueError fails the job.
        parallel: number of jobs at a time.
        stopping: records the signals that end this; the jobs are then saved.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        state: QueueState,
        launch: Callable[[Job], ChildProcess],
        parallel: int,
        stopping: Stopping,
    ):
        self._jobs = {job.name: job for job in jobs}
        self._state = state
        self._launch = launch
        self._parallel = parallel
        self._stopping = stopping
        self._running: dict[str, _Running] = {}
        self._display = Display()
        self._saved: datetime | None = None
        self._unsaved: str | None = None  # why

    def work(self) -> None:
        """Return when no job can go on, or after a signal."""
        try:
            while self._stopping.signal is None:
                self._collect()
                self._start()
                if not self._running:
                    break
                self._look()
                time.sleep(_LOOK)
        finally:
            self._display.close()
            end_all([one.child for one in self._running.values()])
            for name, one in self._running.items():
                self._note(name, "waiting" if one.child.process.returncode else "done")
            self._save()

    def _start(self) -> None:
        """Start the first waiting jobs for which there is room."""
        for name, job in self._jobs.items():
            if len(self._running) >= self._parallel:
                return
            of = self._state.jobs[name]
            if of.state != "waiting" or unfinished_before(job, self._state):
                continue
            saved = newest_step(of)
            try:
                child = self._launch(job)
            except (OSError, ValueError) as error:
                of.state, of.error = "failed", str(error)
                self._display.say(f"failed: {name}: {error}")
                self._save()
                continue
            now = _now()
            self._running[name] = _Running(child, now, of.hours, saved)
            of.state, of.error, of.process = "running", None, identity(child.process.pid)
            of.attempts, of.begun = of.attempts + 1, of.begun or now.isoformat(" ", "minutes")
            self._save()
            self._display.say(f"started: {name}" + (f", from step {saved}" if saved else ""))

    def _collect(self) -> None:
        """Note which jobs have ended: done, to be tried again, or failed."""
        for name in [name for name, one in self._running.items() if one.child.process.poll() is not None]:
            one, of = self._running[name], self._state.jobs[name]
            if one.child.process.returncode == 0:
                self._note(name, "done")
                self._display.say(f"done: {name}, {of.hours:.2f} h")
            elif (step := newest_step(of)) > one.saved:
                self._note(name, "waiting")
                self._display.say(f"ended at step {step}: {name}: {one.child.error}; it is tried again from there")
            else:
                self._note(name, "failed")
                of.error = one.child.error
                self._display.say(f"failed: {name}: {of.error}; its output is in {one.child.log}")
            del self._running[name]
            self._save()

    def _note(self, name: str, state: str) -> None:
        """Note the end of a job's process."""
        one, of = self._running[name], self._state.jobs[name]
        of.state, of.process, of.expected_end = state, None, None
        of.hours = one.hours + (_now() - one.since) / timedelta(hours=1)
        of.step = of.steps if state == "done" and of.steps is not None else newest_step(of)

    def _look(self) -> None:
        """Note and show how far the running jobs are."""
        now = _now()
        for name, one in self._running.items():
            of = self._state.jobs[name]
            of.hours = one.hours + (now - one.since) / timedelta(hours=1)
            if of.run is not None:
                of.step = last_step(Path(of.run))
                one.pace.see(of.step, now)
            end = one.pace.expected_end(of.steps)
            of.expected_end = None if end is None else end.isoformat(" ", "minutes")
        self._display.show({name: self._state.jobs[name] for name in self._running}, now)
        if self._saved is None or now - self._saved >= _SAVE_EVERY:
            self._saved = now
            self._save()

    def _save(self) -> None:
        """Save the state. Where it cannot be, as on a full disk, the queue goes on: jobs may write elsewhere."""
        try:
            self._state.save()
            self._unsaved = None
        except OSError as error:
            if str(error) != self._unsaved:  # once
                self._unsaved = str(error)
                self._display.say(f"note: the state is not saved, and the queue goes on: {error}")


def newest_step(job: JobState) -> int:
    """Return the step of a training's newest checkpoint; 0 without one."""
    saved = checkpoints(Path(job.run)) if job.run is not None else []
    return step_of(saved[-1]) if saved else 0


def _now() -> datetime:
    """Return the time with its zone, so that a change of the clock's hour changes no duration."""
    return datetime.now().astimezone()
