"""The state of a queue, and the processes that it names."""

import subprocess
import sys

import pytest

from arcvq.queue.state import JobState, QueueState, identity, is_running


def test_it_is_read_as_it_was_written(tmp_path):
    state = QueueState(tmp_path, {"a": JobState("failed", "sample", "c0ffee", {"torch": "2"}, 3, error="so")})
    state.of("b").hours = 1.5
    state.save()
    assert QueueState.load(tmp_path) == state
    assert QueueState.load(tmp_path / "none") == QueueState(tmp_path / "none") and not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"jobs": {"a": {"colour": 1}}, "process": null}'])
def test_what_is_no_state_is_refused_and_stays(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json is not the state"):
        QueueState.load(tmp_path)
    assert (tmp_path / "state.json").read_text() == content


def test_a_process_is_told_from_a_later_one_of_its_number():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        known = identity(process.pid)
        assert is_running(known)
        assert not is_running(known | {"words": ["-c", "other"]})
        assert not is_running(known | {"host": "another"})
        process.kill()
    assert not is_running(known) and not is_running(None)
    assert not is_running(identity(process.pid))  # a job that has ended at once is described, too
