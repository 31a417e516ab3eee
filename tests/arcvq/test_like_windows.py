"""What the quick tests show of trainings and samples, on a simulated Windows; a process of its own."""

import os
import subprocess
import sys

import pytest
from places import HELPERS, ROOT

# Locks, checkpoints and resuming, atomic files, cached latents; the last trains, samples, measures, draws and exports.
TESTS = [
    *("runs/test_lock.py", "runs/test_options.py", "runs/test_run.py", "runs/test_log.py", "checkpoints"),
    *("compute/test_atomic_files.py", "compute/test_resumable.py", "training/test_latent_cache.py"),
    "compute/test_precision.py",
]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the simulation finds open files in /proc")
def test_trainings_and_samples_work_without_posix():
    path = os.pathsep.join(map(str, (HELPERS, ROOT, ROOT / "scripts")))
    pytest_on_windows = [sys.executable, "-m", "pytest", "-q", "-p", "like_windows", "-m", "not robustness"]
    tests = [str(ROOT / "tests" / "arcvq" / name) for name in TESTS]
    done = subprocess.run(
        [*pytest_on_windows, "-p", "no:cacheprovider", "--show-capture=no", *tests],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


SEEN = """
import like_windows
import arcvq.runs.lock, arcvq.runs.signals
from pathlib import Path

def refused(call):
    try:
        call()
    except OSError as error:
        return error.strerror.split("]")[0].removeprefix("[WinError ")

file, folder = Path("file"), Path("folder")
folder.mkdir()
file.write_text("old")
Path("new").write_text("new")
opened = file.open()
print(arcvq.runs.lock.sys.platform, hasattr(arcvq.runs.lock, "fcntl"), *arcvq.runs.signals.SIGNALS)
print(refused(file.unlink), refused(lambda: file.replace("other")), refused(lambda: Path("new").replace(file)))
print(refused(lambda: Path("new").rename(file)), refused(lambda: Path("new").replace(folder)))
print(refused(lambda: Path("a:b").write_text("")), refused(Path("nul.txt").mkdir))
print(refused(lambda: Path("link").symlink_to(file)))
opened.close()
print(Path("new").replace(file).read_text())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the simulation finds open files in /proc")
def test_what_windows_refuses_would_be_seen(tmp_path):
    path = os.pathsep.join(map(str, (HELPERS, ROOT, ROOT / "scripts")))
    done = subprocess.run(
        [sys.executable, "-c", SEEN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "win32 False 15",
        "32 32 32",
        "183 5",
        "123 123",
        "1314",
        "new",
    ]
