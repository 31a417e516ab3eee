"""What a start makes of the state that it finds, and which code the jobs get."""

import pytest

from arcvq.queue import job_code
from arcvq.queue.command import prepare
from arcvq.queue.job_code import JobCode
from arcvq.queue.queue_file import Job
from arcvq.queue.state import JobState, QueueState

NEW = Job("new", ("train-ldm", "--run.name", "new", "--optim.max_steps", "9"))
# As of another version of the project.
OLD = Job("old", ("train-ldm", "--an_option_of_before", "1"))


def begun(state, commit="old", **kwargs):
    versions = {"python": "3", "torch": "1"}
    return JobState(state, OLD.command, commit, versions, attempts=1, run="runs/old", steps=5, **kwargs)


def test_a_job_that_has_begun_is_not_checked_by_later_code(tmp_path):
    for found, now in [("running", "waiting"), ("failed", "waiting"), ("waiting", "waiting"), ("done", "done")]:
        state = QueueState(tmp_path, {"old": begun(found)})
        prepare([OLD, NEW], state, [])
        assert state.of("old").state == now and state.of("old").commit == "old"
        assert (state.of("new").run, state.of("new").steps) == ("runs/new", 9)


def test_a_job_that_is_renewed_or_has_another_command_is_checked_and_takes_the_present_code(tmp_path, capsys):
    with pytest.raises(ValueError, match="job old: there is no option --an_option_of_before"):
        prepare([OLD], QueueState(tmp_path, {"old": begun("failed")}), ["old"])
    other = Job("old", NEW.words)
    state = QueueState(tmp_path, {"old": begun("done", hours=3.0, step=5)})
    prepare([other], state, [])
    of = state.of("old")
    assert (of.state, of.command, of.commit, of.versions, of.steps) == ("waiting", other.command, None, {}, 9)
    assert of.step == 0  # of the run folder that it has now
    assert of.hours == 3.0 and "its command has changed" in capsys.readouterr().out


def test_an_old_job_and_a_new_one_do_not_share_a_run_folder(tmp_path):
    with pytest.raises(ValueError, match=r"job new: .*runs/old"):
        prepare([OLD, Job("new", ("train-ldm", "--run.name", "old"))], QueueState(tmp_path, {"old": begun("done")}), [])


class FakeCheckouts:
    """Checkouts that are names."""

    def __init__(self, project, folder):
        self.opened, self.kept = [], None

    def head(self):
        return "present"

    def changed_files(self):
        return ["a.py"]

    def open(self, commit):
        self.opened.append(commit)
        return f"checkout of {commit}"

    def keep(self, commits):
        self.kept = commits

    def packages(self, checkout):
        return [checkout]

    def with_its_configs(self, words, checkout):
        return [*words, checkout]


@pytest.fixture
def in_a_checkout(monkeypatch):
    monkeypatch.setattr(job_code, "find_project", lambda: "project")
    monkeypatch.setattr(job_code, "Checkouts", FakeCheckouts)
    monkeypatch.setattr(job_code, "installed_versions", lambda: {"python": "3", "torch": "2"})


@pytest.mark.usefixtures("in_a_checkout")
def test_each_job_has_the_commit_that_it_began_with(tmp_path, capsys):
    state = QueueState(tmp_path, {"old": begun("waiting"), "new": JobState()})
    code = JobCode(tmp_path, [OLD, NEW], state)
    said = capsys.readouterr().out
    assert "a.py" in said and "torch was 1 and is now 2" in said and "python was" not in said
    assert code.begin(OLD)[1] == ["checkout of old"] and code.begin(NEW)[1] == ["checkout of present"]
    assert state.of("new").commit == "present" and state.of("new").versions == {"python": "3", "torch": "2"}
    assert state.of("old").versions["torch"] == "1"
    code.tidy()
    assert code._checkouts.kept == {"old", "present"}
    state.of("old").state = "done"
    code.tidy()
    assert code._checkouts.kept == {"present"}


def test_the_installed_package_runs_where_there_is_no_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job_code, "find_project", lambda: None)
    monkeypatch.setattr(job_code, "installed_versions", lambda: {"arcvq": "9.8.7"})
    state = QueueState(tmp_path, {"new": JobState()})
    assert JobCode(tmp_path, [NEW], state).begin(NEW) == (list(NEW.words), None)
    assert state.of("new").commit is None and "9.8.7" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"job old began with commit old .*--renew '\[old\]'"):
        JobCode(tmp_path, [OLD], QueueState(tmp_path, {"old": begun("waiting")}))
