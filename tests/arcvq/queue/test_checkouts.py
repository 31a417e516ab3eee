"""Checkouts of commits: what is changed later does not reach them."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from stub_package import write_stub

from arcvq.cli import configs
from arcvq.queue import checkouts as module
from arcvq.queue.checkouts import Checkouts
from arcvq.runs.child_process import ChildProcess

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(project, *words):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", project, *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path):
    """A project of one commit, whose arcvq prints `old`, with a config."""
    folder = tmp_path / "project"
    write_stub(folder / "scripts", "import sys; print('old', *sys.argv[1:])")
    (folder / "configs" / "mnist").mkdir(parents=True)
    (folder / "configs" / "mnist" / "ours.yaml").write_text("old: 1")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return folder


@pytest.fixture
def checkouts(project, tmp_path):
    return Checkouts(project, tmp_path / "state")


def printed(checkouts, commit, log):
    """What a job of a commit prints."""
    child = ChildProcess.start(["a"], log, 1, packages=checkouts.packages(checkouts.open(commit)))
    assert child.process.wait(60) == 0
    return log.read_text().splitlines()[-1]


def test_a_later_commit_does_not_change_what_a_job_runs(project, checkouts, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project), str(project / "scripts")]))
    old = checkouts.head()
    checkouts.open(old)
    (project / "scripts" / "arcvq" / "__main__.py").write_text("print('new')")
    assert checkouts.changed_files() == ["scripts/arcvq/__main__.py"]
    git(project, "commit", "--quiet", "-am", "second")
    assert checkouts.changed_files() == []
    monkeypatch.chdir(project / "scripts")  # where `import arcvq` finds the new one
    assert printed(checkouts, old, tmp_path / "log") == "old a"
    assert printed(checkouts, checkouts.head(), tmp_path / "log") == "new"


@pytest.mark.parametrize("damage", ["half", "changed", "removed", "no repository"])
def test_a_checkout_that_is_not_whole_is_made_anew(project, checkouts, tmp_path, damage):
    commit = checkouts.head()
    checkout = checkouts.open(commit)
    file = checkout / "scripts" / "arcvq" / "__main__.py"
    if damage == "half":
        file.unlink()
    elif damage == "changed":
        file.write_text("print('changed')")
    elif damage == "removed":
        shutil.rmtree(checkout)
    else:
        (checkout / ".git").unlink()
    assert printed(checkouts, commit, tmp_path / "log") == "old a"


def test_checkouts_that_nobody_needs_are_removed_and_git_forgets_them(project, checkouts):
    first = checkouts.head()
    git(project, "commit", "--quiet", "--allow-empty", "-m", "second")
    second = checkouts.head()
    kept, removed = checkouts.open(second), checkouts.open(first)
    checkouts.keep([second])
    assert kept.is_dir() and not removed.exists()
    listed = git(project, "worktree", "list")
    assert str(kept) in listed and str(removed) not in listed


def test_what_is_no_checkout_is_never_removed(checkouts, tmp_path):
    """The folder of the state may be one of the user's."""
    for name in ("thesis", "deadbeef"):
        (tmp_path / "state" / name).mkdir(parents=True)
        (tmp_path / "state" / name / "chapter").write_text("the only copy")
    (tmp_path / "state" / "notes.txt").write_text("mine")
    checkouts.open(checkouts.head())
    checkouts.keep([])
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["deadbeef", "notes.txt", "thesis"]


def test_a_commit_that_is_not_there_is_an_error_in_one_line_that_says_what_to_do(checkouts):
    with pytest.raises(OSError, match=r"commit 000000000000 is no longer in .*--renew") as error:
        checkouts.open("0" * 40)
    assert "\n" not in str(error.value)


def test_the_error_of_git_is_the_first_as_that_of_a_full_disk(checkouts, monkeypatch):
    said = "hint: so\nerror: unable to write file a: No space left on device\nfatal: Could not reset index file\n"
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    with pytest.raises(OSError, match="No space left on device"):
        checkouts.head()


def test_where_no_checkout_can_be_made_the_free_space_is_said(project, checkouts, tmp_path):
    git(project, "config", "core.hooksPath", str(tmp_path))
    (tmp_path / "post-checkout").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "post-checkout").chmod(0o755)
    with pytest.raises(OSError, match=r"git worktree failed .* MB are free in .*state"):
        checkouts.open(checkouts.head())


def test_new_files_of_the_code_are_changes_and_others_are_not(project, checkouts):
    (project / ".gitignore").write_text("*.log\n")
    for name in ("scripts/new.py", "configs/mnist/new.yaml", "scripts/a.log", "notes.txt"):
        (project / name).write_text("")
    assert checkouts.changed_files() == ["configs/mnist/new.yaml", "scripts/new.py"]


def test_a_config_of_the_project_is_that_of_the_checkout(project, checkouts, tmp_path, monkeypatch):
    checkout = checkouts.open(checkouts.head())
    monkeypatch.setattr(configs, "CONFIGS", project / "configs")
    monkeypatch.setattr(module, "CONFIGS", project / "configs")
    new = project / "configs" / "mnist" / "new.yaml"
    new.write_text("in: no commit")
    (tmp_path / "mine.yaml").write_text("of: the user")
    own = checkout / "configs" / "mnist" / "ours.yaml"
    monkeypatch.chdir(project)
    for given, expected in [
        ("configs/mnist/ours.yaml", own),
        (str(project / "configs/mnist/ours.yaml"), own),
        ("mnist/ours", "mnist/ours"),  # a name, which the checkout's code looks up in its own configs
        ("configs/mnist/new.yaml", new),
        ("mnist/new", new),
        ("../mine.yaml", tmp_path / "mine.yaml"),
    ]:
        found = [str(expected)]
        assert checkouts.with_its_configs(["train", "--config", given, "--x", "1"], checkout)[2:3] == found
        assert checkouts.with_its_configs([f"--config={given}"], checkout) == [f"--config={found[0]}"]
    new.unlink()
    assert checkouts.with_its_configs(["--config", "mnist/new"], checkout) == ["--config", "mnist/new"]
