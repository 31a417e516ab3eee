"""One process in a run folder."""

import signal
import subprocess
import sys

import pytest
from places import ROOT

from arcvq.runs.lock import LOCK, FolderLock

HOLD = """
import sys, time
sys.path.insert(0, {scripts!r})
from pathlib import Path
from arcvq.runs.lock import FolderLock
lock = FolderLock(Path({folder!r}))
lock.write_owner()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder):
    code = HOLD.format(scripts=str(ROOT / "scripts"), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_and_a_killed_first_leaves_no_lock(tmp_path):
    first = holder(tmp_path)
    before = (tmp_path / LOCK).read_bytes()
    with pytest.raises(ValueError, match=rf"in use by process {first.pid} on .*choose another --run.name"):
        FolderLock(tmp_path)
    assert (tmp_path / LOCK).read_bytes() == before
    first.send_signal(signal.SIGKILL)
    first.wait()
    FolderLock(tmp_path).check()


@pytest.mark.posix
def test_a_forked_child_does_not_keep_it(tmp_path):
    """As the processes that load data, which outlive a killed run by seconds."""
    code = HOLD.format(scripts=str(ROOT / "scripts"), folder=str(tmp_path))
    code = code.replace('print("held"', "import os\nif os.fork() == 0: time.sleep(5)\nprint('held'")
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    first.stdout.readline()
    first.kill()
    first.wait()
    FolderLock(tmp_path)


@pytest.mark.posix
def test_a_folder_that_is_gone_or_another_one_is_seen(tmp_path):
    lock = FolderLock(tmp_path / "run")
    lock.check()
    (tmp_path / "run").rename(tmp_path / "aside")
    with pytest.raises(OSError, match="is gone, or another one"):
        lock.check()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    with pytest.raises(OSError, match="is gone, or another one"):
        lock.check()


def test_starting_over_keeps_what_was_there(tmp_path):
    for number in (1, 2):
        lock = FolderLock(tmp_path / "run")
        (tmp_path / "run" / "result").write_text(str(number))
        assert lock.start_over() is not lock
        assert (tmp_path / f"run.before-{number}" / "result").read_text() == str(number)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
