"""Trainings beside each other: the results of one after the other, failures that stop nobody, and no orphans."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from images import write_mnist_size
from places import PYTHONPATH

from arcvq.checkpoints.checkpoint import has_checkpoints
from arcvq.paper.parallel import run_beside_each_other

WEIGHTS = "tokenizer/diffusion_pytorch_model.safetensors"
ROWS = ("vq", "arcvq_fixed")
PATIENCE = 600


def test_one_that_fails_does_not_stop_the_others(tmp_path, capfd):
    commands = {tmp_path / "bench" / name: [word] for name, word in (("a", "nix"), ("b", "--version"), ("c", "no"))}
    failed = run_beside_each_other(commands, 2)
    assert failed.keys() == {tmp_path / "bench/a", tmp_path / "bench/c"}
    assert failed[tmp_path / "bench/a"].startswith("unknown verb 'nix'")
    assert (tmp_path / "bench/b.log").read_text().startswith("arcvq ")
    assert "a.log" in capfd.readouterr().out


def command(images, output_dir, steps, parallel):
    words = ["reproduce", "table_12", "--data", "mnist", "--images", images, "--budget", f"{steps}steps"]
    words += ["--seeds", "[0]", "--rows", f"[{', '.join(ROWS)}]", "--output_dir", output_dir]
    words += ["--measure.extractor", "null", "--measure.lpips", "null", "--parallel", parallel]
    return [sys.executable, "-m", "arcvq", *map(str, words)]


def start(tmp_path, *options):
    variables = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(tmp_path / "images", *options), cwd=tmp_path, env=variables, **pipes)


def finish(tmp_path, *options):
    process = start(tmp_path, *options)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed[-3000:]
    return printed


def result(bench):
    """Weights, the numbers of the trainings, the table's rows, and the names of all files."""
    weights = [(bench / f"{row}-seed0" / WEIGHTS).read_bytes() for row in ROWS]
    logs = [(bench / f"{row}-seed0" / "metrics.jsonl").read_text().splitlines() for row in ROWS]
    timed = ("images_per_second", "loader_share")
    numbers = [[{k: v for k, v in json.loads(line).items() if k not in timed} for line in log] for log in logs]
    rows = json.loads((bench / "table_12-mnist.json").read_text())["rows"]
    for row in rows.values():
        cost = row["trainings"]["0"]["tokenizer"]
        assert cost.pop("hours") > 0 and Path(cost.pop("run")).parent.name == bench.name
    files = {file.relative_to(bench) for file in bench.rglob("*") if file.is_file() and "tensorboard" not in file.parts}
    return weights, numbers, rows, {file for file in files if file.suffix != ".log"}


@pytest.fixture
def images(tmp_path):
    """A folder of images of MNIST's size."""
    write_mnist_size(tmp_path / "images")


def wait_until(condition):
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("images")
def test_killed_and_taken_up_again_two_at_a_time_make_the_table_of_one(tmp_path):
    finish(tmp_path, "one", 15, 1)
    bench = Path(tmp_path, "two", "mnist-15steps")
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(tmp_path, "two", 15, 2)
        wait_until(lambda: len(psutil.Process(process.pid).children()) == 2 or process.poll() is not None)  # noqa: B023
        children = psutil.Process(process.pid).children()
        wait_until(lambda: has_checkpoints(bench / "vq-seed0") or process.poll() is not None)  # noqa: B023
        process.send_signal(number)
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == (128 + number if number == signal.SIGTERM else -number), printed[-3000:]
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
        assert not alive
        assert not (bench / "vq-seed0" / WEIGHTS).exists()
    printed = finish(tmp_path, "two", 15, 2)
    assert "2 at a time" in printed and "resuming from" in (bench / "vq-seed0.log").read_text()
    one, two = result(tmp_path / "one" / "mnist-15steps"), result(bench)
    assert one[0] == two[0] and one[1] == two[1] and one[2] == two[2]
    assert one[3] == two[3]
