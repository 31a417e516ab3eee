"""Work a queue of commands off, at low priority, for days: the same command goes on after any end.

arcvq queue queue/paper_length.yaml
arcvq queue queue/paper_length.yaml --status
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.compute.threads import usable_cores
from arcvq.queue.check_command import check_command, check_folders
from arcvq.queue.job_code import JobCode
from arcvq.queue.queue_file import Job, find_queue, read_jobs
from arcvq.queue.state import QueueState, identity, is_running
from arcvq.queue.table import table
from arcvq.queue.worker import Worker, newest_step
from arcvq.runs.child_process import ChildProcess
from arcvq.runs.lock import FolderLock
from arcvq.runs.log import last_step
from arcvq.runs.signals import ALL_SIGNALS, Stopping

HELP = HelpPage(
    examples=(
        "arcvq queue queue/paper_length.yaml",
        "arcvq queue queue/paper_length.yaml --status",
        "arcvq queue queue/paper_length.yaml --renew '[cifar10-ldm]'",
    ),
    writes="STATE/state.json and NAME.log of each job; what the jobs write",
    following="the same command, after any end; arcvq evaluate reconstruction runs/NAME",
)

# The lowest priority: a job takes what other processes leave.
_NICE = 19


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Work a queue of commands off, each resumed until it is done.", page=HELP)
    parser.add_argument(
        "file", type=str, help="YAML with the jobs, or its name in configs/, as queue/paper_length.yaml"
    )
    parser.add_argument(
        "--status", type=bool, nargs="?", const=True, default=False, help="only print the state of each job"
    )
    parser.add_argument(
        "--jobs", type=int | None, default=None, help="jobs at a time; None: one per usable core, beside a GPU one"
    )
    parser.add_argument("--state", type=str | None, default=None, help="folder of the state; None: runs/queue/FILE")
    parser.add_argument(
        "--renew",
        type=list[str],
        default=[],
        help="jobs that go on with the present commit, not the one they began with",
    )
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Show the queue, or work it off."""
    config = make_parser().parse(args)
    if config.jobs is not None and config.jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {config.jobs}")
    file = find_queue(config.file)
    jobs = read_jobs(file)
    if unknown := [name for name in config.renew if name not in (job.name for job in jobs)]:
        raise ValueError(f"renew names {unknown[0]!r:.80}, which is no job of {file}")
    folder = Path(config.state or Path("runs", "queue", file.stem))
    if config.status:
        print(table(jobs, with_present_steps(QueueState.load(folder))))
        return
    lock = FolderLock(folder, choice="--state")
    state = QueueState.load(folder)
    prepare(jobs, state, config.renew)
    code = JobCode(folder, jobs, state)
    lock.write_owner()
    state.process = identity(os.getpid())
    state.save()
    work_off(config, jobs, state, code)


def prepare(jobs: Sequence[Job], state: QueueState, renew: Sequence[str]) -> None:
    """Check all commands, and enter new jobs into the state; a failed job is to be tried again.

    The command of a job that has begun has been checked by the code that it began with, which may be older.

    Args:
        jobs: of the queue.
        state: of the queue; changed, not saved.
        renew: names of jobs that go on with the present code.

    Raises:
        ValueError: a command that cannot work, or two trainings in one run folder.
    """
    for job in jobs:
        of = state.of(job.name)
        if of.has_begun and of.command == job.command and job.name not in renew:
            of.state = "done" if of.state == "done" else "waiting"
            continue
        work = check_command(job)
        if of.has_begun:
            print(
                f"note: job {job.name} goes on with the present code"
                + (": renew" if job.name in renew else ", as its command has changed")
            )
        of.state, of.command, of.commit, of.versions = "waiting", job.command, None, {}
        of.run, of.steps = None if work.run is None else str(work.run), work.steps
        of.step = newest_step(of)
    check_folders([(job.name, state.of(job.name).run) for job in jobs])


def work_off(config: Namespace, jobs: Sequence[Job], state: QueueState, code: JobCode) -> None:
    """Work the queue off.

    Raises:
        ValueError: jobs have failed.
        SystemExit: a signal has announced the end of this command; all jobs have ended.
    """
    beside_accelerator = torch.accelerator.is_available()
    parallel = config.jobs or (1 if beside_accelerator else usable_cores())
    done = sum(state.of(job.name).state == "done" for job in jobs)
    print(f"queue: {done} of {len(jobs)} jobs are done, {parallel} at a time; {state.folder}", flush=True)

    def launch(job: Job) -> ChildProcess:
        words, packages = code.begin(job)
        return ChildProcess.start(words, state.folder / f"{job.name}.log", threads=1, packages=packages, nice=_NICE)

    with Stopping(ALL_SIGNALS) as stopping:
        await_former(state, stopping)
        Worker(jobs, state, launch, parallel, stopping).work()
        if stopping.signal is not None:
            print(f"{stopping.signal.name}: the jobs are saved; the same command goes on from there")
            stopping.exit()
    code.tidy()
    print(table(jobs, state))
    if failed := [job.name for job in jobs if state.of(job.name).state == "failed"]:
        raise ValueError(
            f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}; mend what their errors name, and start "
            "the same command again; --renew takes the present code for them"
        )


def await_former(state: QueueState, stopping: Stopping) -> None:
    """Wait for jobs of a queue that was killed: they notice it, save and end."""
    for name, of in state.jobs.items():
        if is_running(of.process):
            print(f"waiting for {name}, process {of.process['number']}: it saves and ends, as its queue was killed")
        while is_running(of.process) and stopping.signal is None:
            time.sleep(0.5)
        of.process = of.process if is_running(of.process) else None


def with_present_steps(state: QueueState) -> QueueState:
    """Read how far the running jobs are by now."""
    for of in state.jobs.values():
        if of.state == "running" and of.run is not None:
            of.step = last_step(Path(of.run))
    return state
