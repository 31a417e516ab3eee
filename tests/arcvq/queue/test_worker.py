"""A queue at work, on jobs that are a line of Python each, in real processes."""

import os
import signal
import threading
import time

import pytest
from stub_package import write_stub

from arcvq.checkpoints.manifest import Progress, write_manifest
from arcvq.queue import worker as module
from arcvq.queue.queue_file import Job
from arcvq.queue.state import JobState, QueueState
from arcvq.queue.worker import Worker, newest_step
from arcvq.runs.child_process import ChildProcess
from arcvq.runs.signals import ALL_SIGNALS, Stopping

NOTE = "open('done', 'a').write('{0}\\n')"
FAIL = "import sys; sys.exit('error: no {0}')"
# Ends as a training does: it saves after a signal.
TRAIN = (
    "import signal, sys, time\n"
    "def save(*_): open('saved', 'a').write('{0}\\n'); sys.exit(143)\n"
    "signal.signal(signal.SIGTERM, save); open('begun', 'a').write('{0}\\n'); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory, and a package whose verb is its code."""
    write_stub(tmp_path / "packages", "import sys; exec(sys.argv[1])")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_LOOK", 0.02)
    return tmp_path


def work(place, jobs, parallel=1, state=None, stop_when=None):
    """Works jobs off: name => code, or (code, after). Returns the state, and the signal that has ended it."""
    jobs = {name: (job, ()) if isinstance(job, str) else job for name, job in jobs.items()}
    jobs = [Job(name, (code.format(name),), after) for name, (code, after) in jobs.items()]
    state = state or QueueState(place, {job.name: JobState() for job in jobs})

    def launch(job):
        return ChildProcess.start(job.words, place / f"{job.name}.log", 1, packages=[str(place / "packages")])

    def stop():
        while not stop_when():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with Stopping(ALL_SIGNALS) as stopping:
        if stop_when is not None:
            threading.Thread(target=stop).start()
        Worker(jobs, state, launch, parallel, stopping).work()
    assert QueueState.load(place) == state
    return {name: of.state for name, of in state.jobs.items()}, stopping.signal


def lines(file):
    return file.read_text().split() if file.exists() else []


def test_jobs_are_done_in_order_but_for_those_that_come_after_others(place):
    states, _ = work(place, {"a": (NOTE, ("c",)), "b": NOTE, "c": (NOTE, ("d",)), "d": NOTE})
    assert lines(place / "done") == ["b", "d", "c", "a"] and set(states.values()) == {"done"}


def test_as_many_as_allowed_work_at_a_time(place):
    """Each of two waits for the other; a third would be seen by them."""
    meet = (
        "import pathlib, time\npathlib.Path('at-{0}').touch()\n"
        "while len(list(pathlib.Path().glob('at-*'))) < 2: time.sleep(0.01)\n"
        "time.sleep(0.3); assert len(list(pathlib.Path().glob('at-*'))) == 2"
    )
    states, _ = work(place, {"a": meet, "b": meet, "c": (NOTE, ("a", "b"))}, parallel=2)
    assert set(states.values()) == {"done"}


def test_a_failure_stops_those_after_it_and_no_others(place, capsys):
    jobs = {"a": FAIL, "b": (NOTE, ("a",)), "c": (NOTE, ("b",)), "d": NOTE}
    states, _ = work(place, jobs)
    assert states == {"a": "failed", "b": "waiting", "c": "waiting", "d": "done"}
    state = QueueState.load(place).of("a")
    assert (state.error, state.attempts) == ("no a", 1) and "failed: a: no a" in capsys.readouterr().out


def test_a_job_that_cannot_be_started_fails_alone(place):
    state = QueueState(place, {"a": JobState(), "b": JobState()})

    def launch(job):
        if job.name == "a":
            raise OSError("no room")
        return ChildProcess.start(job.words, place / "log", 1, packages=[str(place / "packages")])

    jobs = [Job(name, (NOTE.format(name),)) for name in "ab"]
    Worker(jobs, state, launch, 1, Stopping()).work()
    assert (state.of("a").state, state.of("a").error, state.of("b").state) == ("failed", "no room", "done")


def test_a_failed_job_is_tried_again_as_long_as_it_gets_further(place, monkeypatch):
    """Its checkpoints are of steps 3, 5 and 5."""
    monkeypatch.setattr(module, "newest_step", lambda of: max(map(int, lines(place / "steps")), default=0))
    further = (
        "import sys; have = len(open('steps', 'a+').seek(0) or open('steps').read().split())\n"
        "open('steps', 'a').write(f'{{min(3 + 2 * have, 5)}}\\n'); sys.exit('error: again')"
    )
    states, _ = work(place, {"a": further, "b": NOTE})
    assert lines(place / "steps") == ["3", "5", "5"] and states == {"a": "failed", "b": "done"}
    of = QueueState.load(place).of("a")
    assert (of.attempts, of.step) == (3, 5)


def test_a_signal_lets_the_running_save_and_starts_no_others(place):
    states, stopped_by = work(
        place, {"a": TRAIN, "b": TRAIN, "c": NOTE}, 2, stop_when=lambda: len(lines(place / "begun")) == 2
    )
    assert stopped_by == signal.SIGINT and states == dict.fromkeys("abc", "waiting")
    assert sorted(lines(place / "saved")) == ["a", "b"] and not lines(place / "done")
    state = QueueState.load(place)
    assert state.of("a").attempts == 1 and state.of("a").process is None
    # The next start goes on with all of them, and the hours add up.
    before = state.of("a").hours
    states, _ = work(place, dict.fromkeys("abc", NOTE), state=state)
    assert set(states.values()) == {"done"} and state.of("a").attempts == 2 and state.of("a").hours > before > 0


def test_a_job_that_was_done_when_the_signal_came_is_done(place):
    finish = TRAIN.replace("sys.exit(143)", "sys.exit(0)")
    states, _ = work(place, {"a": finish}, stop_when=lambda: lines(place / "begun"))
    assert states == {"a": "done"}


def test_a_state_that_cannot_be_saved_stops_no_job_and_is_said_once(place, monkeypatch, capsys):
    def fail(_):
        raise OSError("no room")

    state = QueueState(place, {"a": JobState(), "b": JobState()})
    with monkeypatch.context() as patch:
        patch.setattr(QueueState, "save", fail)
        jobs = [Job(name, (NOTE.format(name),)) for name in "ab"]
        launch = lambda job: ChildProcess.start(job.words, place / "log", 1, packages=[str(place / "packages")])  # noqa: E731
        Worker(jobs, state, launch, 1, Stopping()).work()
    assert lines(place / "done") == ["a", "b"] and capsys.readouterr().out.count("no room") == 1


def test_the_newest_step_is_that_of_whole_checkpoints(tmp_path):
    assert newest_step(JobState()) == newest_step(JobState(run=str(tmp_path))) == 0
    for step in (20, 100):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
        write_manifest(tmp_path / "checkpoints" / f"step-{step}", Progress(step, 1, 1, "NO"))
    assert newest_step(JobState(run=str(tmp_path))) == 100
    (tmp_path / "checkpoints" / "step-100" / "progress.json").unlink()
    assert newest_step(JobState(run=str(tmp_path))) == 20
