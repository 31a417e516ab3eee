"""What is shown of a queue."""

import os
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from arcvq.queue import table as module
from arcvq.queue.queue_file import Job
from arcvq.queue.state import JobState, QueueState, identity
from arcvq.queue.table import Display, table

JOBS = [Job("a", ("sample",)), Job("long-name", ("sample",)), Job("c", ("sample",), ("a", "long-name"))]


def rows(state):
    return [line.split() for line in table(JOBS, state).splitlines()[1:]]


def test_a_line_for_each_job_says_how_far_it_is_or_why_it_is_not(tmp_path):
    state = QueueState(tmp_path, process=identity(os.getpid()))
    state.jobs["a"] = JobState("running", attempts=1, hours=1.25, step=3, steps=9, expected_end="2030-01-02 03:04")
    state.jobs["long-name"] = JobState("failed", attempts=2, hours=0.5, error="no data")
    assert rows(state) == [
        ["a", "running", "3/9", "1.25", "expected", "end", "2030-01-02", "03:04"],
        ["long-name", "failed", "0.50", "no", "data"],
        ["c", "waiting", "after", "a,", "long-name"],
    ]


def test_what_ran_when_its_queue_was_killed_is_stopped(tmp_path):
    state = QueueState(tmp_path, process=identity(os.getpid()) | {"words": ["another"]})
    state.jobs["a"] = JobState("running", attempts=1, step=3, steps=9, expected_end="2030-01-02 03:04")
    assert rows(state)[0][:3] == ["a", "stopped", "3/9"] and "2030" not in table(JOBS, state)


def test_what_runs_on_another_machine_is_not_called_stopped(tmp_path):
    state = QueueState(tmp_path, process=identity(os.getpid()) | {"host": "another"})
    state.jobs["a"] = JobState("running", attempts=1, step=3, steps=9)
    assert rows(state)[0][:3] == ["a", "running", "3/9"] and "on another, unless" in table(JOBS, state)


def test_without_a_terminal_a_running_job_has_a_line_a_minute(capsys):
    display, begin = Display(), datetime(2030, 1, 1)
    for second in range(0, 150, 5):
        display.show({"a": JobState("running", step=second, steps=900)}, begin + timedelta(seconds=second))
    display.close()
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()] == ["0/900,", "60/900,", "120/900,"]


def test_on_a_terminal_a_running_job_has_a_bar_with_the_steps_of_this_start(monkeypatch):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
    bars = []

    class Bar(SimpleNamespace):
        def refresh(self):
            self.shown = self.n - self.initial

        def close(self):
            self.closed = True

    def tqdm(desc, total, initial, **_):
        bars.append(Bar(desc=desc, total=total, initial=initial, n=initial))
        return bars[-1]

    monkeypatch.setattr(module, "tqdm", tqdm)
    display = Display()
    for step, shown in [(40, 0), (60, 20), (50, 0), (58, 8)]:  # steps after a checkpoint are repeated
        display.show({"a": JobState("running", step=step, steps=90)}, datetime(2030, 1, 1))
        assert bars[0].shown == shown
    display.show({"b": JobState("running")}, datetime(2030, 1, 1))
    assert [bar.desc for bar in bars] == ["a", "b"] and bars[0].closed and bars[1].total is None
    display.close()
    assert bars[1].closed


@pytest.mark.parametrize("state", ["waiting", "done"])
def test_a_queue_that_has_not_begun_is_a_table_too(tmp_path, state):
    found = rows(QueueState(tmp_path, {"a": JobState(state)}))
    assert found[0] == ["a", state] and len(found) == 3
