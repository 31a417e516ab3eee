"""`arcvq queue` as a user starts it: small trainings in a project of its own, killed, taken up again, and changed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import ROOT
from small_runs import SMALL, run

from arcvq.checkpoints.checkpoint import has_checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.posix,
    pytest.mark.skipif(shutil.which("git") is None, reason="there is no git"),
]
PATIENCE = 600
STEPS = 100
WEIGHTS = {"tokenizer": "tokenizer/diffusion_pytorch_model.safetensors", "prior": "pipeline/prior"}
OFTEN = "--run.log_every 1 --run.checkpoint_every 10 --optim.batch_size 16"
TOKENIZER = f"train-tokenizer {' '.join(SMALL['tokenizer'])} {OFTEN} --optim.max_steps {STEPS} --run.name"
PRIOR = f"train-pixelcnn {' '.join(SMALL['pixelcnn'])} {OFTEN} --optim.max_steps 10 --run.name"
QUEUE = f"""
prior: {{command: "{PRIOR} prior --tokenizer runs/one", after: [one]}}
one: {{command: "{TOKENIZER} one"}}
two: {{command: "{TOKENIZER} two --run.seed 1"}}
"""
ENDLESS = f"long: {{command: '{TOKENIZER} long --optim.max_steps 1000000'}}"


def git(project, *words):
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", project, *identity, *words], check=True, capture_output=True)


@pytest.fixture
def project(tmp_path):
    """A repository of one commit with the project's packages as they are."""
    folder = tmp_path / "project"
    for name in ("scripts", "tokenizer", "priors", "pipelines", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / ".gitignore").write_text("__pycache__/\n/runs/\n")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    (folder / "runs").mkdir()
    (folder / "runs" / "queue.yaml").write_text(QUEUE)
    return folder


def start(project, *options):
    path = os.pathsep.join([str(project), str(project / "scripts")])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [sys.executable, "-m", "arcvq", "queue", "runs/queue.yaml", *options]
    return subprocess.Popen(command, cwd=project, env=os.environ | {"PYTHONPATH": path}, **pipes)


def finish(process, status=0):
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, printed[-3000:]
    return printed


def wait_until(condition, process):
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < ends, process.communicate()[0]
        time.sleep(0.1)


def weights(runs):
    files = [*(Path(runs, name, WEIGHTS["tokenizer"]) for name in ("one", "two"))]
    files += sorted(Path(runs, "prior", WEIGHTS["prior"]).glob("*.safetensors"))
    assert len(files) == 3
    return [file.read_bytes() for file in files]


def test_a_queue_that_is_stopped_killed_and_overtaken_by_commits_makes_what_trainings_alone_make(project, tmp_path):
    for command in (f"{TOKENIZER} one", f"{TOKENIZER} two --run.seed 1", f"{PRIOR} prior --tokenizer runs/one"):
        verb, *options = command.split()
        run(verb.replace("-", "_"), *options, "--run.threads", 1, cwd=tmp_path)
    runs = project / "runs"

    # Stopped by a signal.
    queue = start(project, "--jobs", "2")
    wait_until(lambda: has_checkpoints(runs / "one") and has_checkpoints(runs / "two"), queue)
    children = psutil.Process(queue.pid).children(recursive=True)
    queue.send_signal(signal.SIGTERM)
    finish(queue, 128 + signal.SIGTERM)
    assert not [child for child in children if child.is_running()]
    assert not (runs / "one" / "tokenizer").exists()
    assert "is saved; the same command goes on" in (runs / "queue" / "queue" / "one.log").read_text()

    # The code changes, in a commit, so that no training of it works any more.
    for name in ("tokenizer", "pixelcnn"):
        with (project / "scripts" / "arcvq" / "training" / f"{name}.py").open("a") as file:
            file.write("\n\ndef train(*_):\n    raise ValueError('the new code')\n")
    git(project, "commit", "--quiet", "-am", "second")

    # Killed, and started again at once, while the jobs still save.
    queue = start(project, "--jobs", "2")
    before = (runs / "one" / "metrics.jsonl").stat().st_size
    wait_until(lambda: (runs / "one" / "metrics.jsonl").stat().st_size > before, queue)
    children = psutil.Process(queue.pid).children(recursive=True)
    assert children
    queue.kill()
    finish(queue, -signal.SIGKILL)
    queue = start(project, "--jobs", "2")
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []
    printed = finish(queue, 2)  # the prior begins only now, with the new code
    assert "failed: prior: the new code" in printed and "failed: one" not in printed and "failed: two" not in printed
    git(project, "revert", "--no-edit", "HEAD")
    assert "prior  done" in finish(start(project, "--renew", "[prior]"))
    assert weights(runs) == weights(tmp_path / "runs")
    assert not list((runs / "queue" / "queue" / "checkouts").glob("*"))
    assert finish(start(project, "--status")).count("done") == 3


def test_a_second_queue_of_the_file_is_refused_and_the_status_starts_nothing(project):
    (project / "runs" / "queue.yaml").write_text(ENDLESS)
    assert "waiting" in finish(start(project, "--status")) and not (project / "runs" / "queue").exists()
    queue = start(project)
    wait_until(lambda: has_checkpoints(project / "runs" / "long"), queue)
    (child,) = psutil.Process(queue.pid).children()
    second = finish(start(project), status=2)
    assert f"in use by process {queue.pid}" in second and "--state" in second
    shown = finish(start(project, "--status"))
    assert "running" in shown and int(shown.split("/1000000")[0].split()[-1]) >= 10
    queue.kill()
    finish(queue, -signal.SIGKILL)
    assert psutil.wait_procs([child], timeout=PATIENCE)[1] == []
    assert "stopped" in finish(start(project, "--status"))
