"""Commands in processes of their own: where their code comes from, what they say, and how they end."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from places import PYTHONPATH
from stub_package import write_stub

from arcvq.runs import child
from arcvq.runs.child_process import ChildProcess


def test_the_reason_is_the_error_and_not_the_progress_of_another_command(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("error: of before\n")
    training = ChildProcess(SimpleNamespace(returncode=2), log, log.stat().st_size)
    assert training.error == "ended with status 2"
    with log.open("a") as file:
        file.write("\rdecoding: 3 %error: run is in use\n\rdecoding: 9 %")
    assert training.error == "run is in use"


@pytest.mark.posix
def test_a_process_that_was_killed_names_the_signal(tmp_path):
    (tmp_path / "log").write_text("90 %")
    assert ChildProcess(SimpleNamespace(returncode=-9), tmp_path / "log").error == "ended by SIGKILL"


def test_its_packages_come_before_those_of_the_folder_it_works_in(tmp_path, monkeypatch):
    """As where the present folder is a checkout of a later commit; for the processes that it starts as well."""
    again = "len(sys.argv) > 1 and subprocess.run([sys.executable, '-m', 'arcvq'])"
    write_stub(tmp_path / "asked", f"import subprocess, sys; print('asked', flush=True); {again}")
    write_stub(tmp_path / "present", "print('present')")
    monkeypatch.chdir(tmp_path / "present")
    child = ChildProcess.start(["verb"], tmp_path / "log", 1, packages=[str(tmp_path / "asked")])
    assert child.process.wait(60) == 0
    assert (tmp_path / "log").read_text() == "asked\nasked\n"


@pytest.mark.posix
def test_it_has_the_threads_and_the_priority_that_were_asked_for(tmp_path):
    write_stub(tmp_path, "import os, sys; print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.nice(0))")
    child = ChildProcess.start(["a", "b"], tmp_path / "log", 3, packages=[str(tmp_path)], nice=19)
    assert child.process.wait(60) == 0
    assert (tmp_path / "log").read_text() == "['a', 'b'] 3 19\n"


@pytest.mark.posix
def test_a_parent_that_ends_between_two_looks_is_seen(monkeypatch):
    class Parent:
        def is_running(self):
            return True

        def status(self):
            raise psutil.NoSuchProcess(1)

    sent = []
    monkeypatch.setattr(child.os, "kill", lambda *signal: sent.append(signal))
    child.end_with(Parent())
    assert sent == [(os.getpid(), signal.SIGTERM)]


PARENT = """
import sys, time
from pathlib import Path
from arcvq.runs.child_process import ChildProcess
folder = Path(sys.argv[1])
print(ChildProcess.start([], folder / "log", 1, packages=[str(folder)]).process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.posix
def test_it_is_told_to_end_when_its_parent_is_killed(tmp_path):
    write_stub(
        tmp_path,
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit()))\n"
        "print('ready', flush=True); time.sleep(600)",
    )
    variables = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        while not (tmp_path / "log").read_text():
            time.sleep(0.02)
        parent.kill()
    assert psutil.wait_procs([child], timeout=60)[1] == []
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"
