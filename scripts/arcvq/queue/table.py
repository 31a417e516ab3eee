"""Show a queue: a line for each job, or a progress bar for each running one."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tqdm.auto import tqdm

from arcvq.queue.queue_file import Job
from arcvq.queue.state import JobState, QueueState

# Between two lines of a job where there is no terminal.
_EVERY = timedelta(minutes=1)


def table(jobs: Sequence[Job], state: QueueState) -> str:
    """Write a line for each job: state, steps, hours, and when it is expected to end or why it does not run."""
    rows = [("job", "state", "steps", "hours", "")]
    rows += [_row(job, state) for job in jobs]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    )


def steps_of(job: JobState) -> str:
    """Write how far a training is, as 480/24000; nothing for another command."""
    return "" if job.steps is None else f"{job.step}/{job.steps}"


class Display:
    """What a running queue shows: bars on a terminal, elsewhere a line a minute for each running job."""

    def __init__(self):
        self._bars: dict[str, tqdm] | None = {} if sys.stderr.isatty() else None
        self._next: datetime | None = None  # time of the next lines

    def show(self, running: Mapping[str, JobState], now: datetime) -> None:
        """Show the running jobs."""
        if self._bars is not None:
            for name in self._bars.keys() - running.keys():
                self._bars.pop(name).close()
            for name, job in running.items():
                self._bar(name, job)
        elif running and (self._next is None or now >= self._next):
            self._next = now + _EVERY
            for name, job in running.items():
                end = f", expected end {job.expected_end}" if job.expected_end else ""
                self.say(f"{now:%Y-%m-%d %H:%M} {name}: {steps_of(job) or job.state}, {job.hours:.2f} h{end}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        tqdm.write(line)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the bars."""
        for bar in (self._bars or {}).values():
            bar.close()

    def _bar(self, name: str, job: JobState) -> None:
        """Advance the bar of a job; it shows speed and remaining time by itself."""
        if name not in self._bars:
            self._bars[name] = tqdm(desc=name, total=job.steps, initial=job.step, unit="step", leave=False)
        bar = self._bars[name]
        if job.step < bar.n:  # it repeats steps after its checkpoint
            bar.initial = job.step
        bar.n = job.step
        bar.refresh()


def _row(job: Job, state: QueueState) -> tuple[str, str, str, str, str]:
    """The cells of a job."""
    of = state.of(job.name)
    shown, remark = of.state, ""
    if of.state == "running" and state.elsewhere:
        remark = f"on {state.elsewhere}, unless its queue was killed there"
    elif of.state == "running" and not state.is_worked_off:
        shown, remark = "stopped", "the same command goes on"
    elif of.state == "running" and of.expected_end:
        remark = f"expected end {of.expected_end}"
    elif of.state == "failed":
        remark = of.error or ""
    elif of.state == "waiting" and (before := unfinished_before(job, state)):
        remark = f"after {', '.join(before)}"
    return job.name, shown, steps_of(of), f"{of.hours:.2f}" if of.has_begun else "", remark


def unfinished_before(job: Job, state: QueueState) -> list[str]:
    """List the jobs that must be done before a job, and are not."""
    return [name for name in job.after if state.of(name).state != "done"]
