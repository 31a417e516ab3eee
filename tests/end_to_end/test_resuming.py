"""A run folder that is met again: by other settings, another number of processes, images that cannot be used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image
from places import ROOT
from safetensors.torch import load_file

from arcvq.faults import forked_process, trainings

SCRIPT = str(ROOT / "scripts" / "train_tokenizer.py")
SMALL = ["--model.codebook_size", "16", "--model.codebook_dim", "4", "--model.hidden_channels", "8"]
SMALL += ["--optim.batch_size", "16", "--run.log_every", "2", "--run.checkpoint_every", "4", "--run.name", "run"]
WEIGHTS = "runs/run/tokenizer/diffusion_pytorch_model.safetensors"


def train(cwd, *options, steps=8, check=True):
    done = forked_process.run(
        [sys.executable, SCRIPT, *SMALL, "--optim.max_steps", str(steps), *map(str, options)], cwd
    )
    assert done.returncode == 0 or not check, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A folder with a run of eight steps."""
    cwd = tmp_path_factory.mktemp("half")
    train(cwd)
    return cwd


@pytest.fixture
def begun(half, tmp_path):
    shutil.copytree(half / "runs", tmp_path / "runs")
    return tmp_path


def test_another_experiment_goes_on_when_asked_with_the_differences_told(begun):
    refused = train(begun, "--optim.lr", "0.001", "--optim.weight_decay", "0.5", steps=12, check=False)
    assert refused.returncode == 2 and "--run.other_settings go_on or start_over" in refused.stderr
    done = train(begun, "--optim.lr", "0.001", "--optim.weight_decay", "0.5", "--run.other_settings", "go_on", steps=12)
    assert "optim.lr was 0.002 and is now 0.001; optim.weight_decay was 0.0 and is now 0.5" in done.stdout
    assert "resuming from runs/run/checkpoints/step-8" in done.stdout
    assert yaml.safe_load((begun / "runs/run/config.yaml").read_text())["optim"]["lr"] == 0.001
    # What was asked for once is now what the folder holds: the same command goes on without a word.
    assert "note:" not in train(begun, "--optim.lr", "0.001", "--optim.weight_decay", "0.5", steps=16).stdout


GAN = ["--adversarial.weight", 0.5, "--adversarial.channels", 4, "--adversarial.layers", 1]


def of_what_starts_anew(done):
    return [line for line in done.stdout.splitlines() if line.startswith("note: the ") or "LeCAM" in line]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param(["--ema_decay", 0.9], "EMA", id="EMA", marks=pytest.mark.slow),
        pytest.param(
            [*GAN, "--adversarial.pretrain_steps", 2, "--adversarial.lecam_weight", 0.1],
            "discriminator",
            id="adversary",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_part_is_switched_on_and_off_in_a_line_each(begun, tmp_path, options, named):
    shutil.copytree(begun / "runs", tmp_path / "other" / "runs")
    refused = train(begun, *options, steps=12, check=False)
    assert refused.returncode == 2 and "go_on" in refused.stderr
    go_on = ["--run.other_settings", "go_on"]
    (line,) = of_what_starts_anew(train(begun, *options, *go_on, steps=12))
    assert named in line and "anew" in line and "step 8" in line
    # Then it is a run as any other: stopped and started, it ends with the weights of one that was not.
    assert not of_what_starts_anew(train(begun, *options, steps=16))
    train(tmp_path / "other", *options, *go_on, steps=16)
    for name, value in load_file(begun / WEIGHTS).items():
        assert torch.equal(value, load_file(tmp_path / "other" / WEIGHTS)[name]), name
    log = [json.loads(line) for line in (begun / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in log if "discriminator" in line} <= set(range(9, 17))
    (line,) = of_what_starts_anew(train(begun, *go_on, steps=20))
    assert named in line and "ends" in line and "step 16" in line
    assert not of_what_starts_anew(train(begun, steps=24))


@pytest.mark.slow
def test_two_processes_go_on_with_a_discriminator_that_joins(begun):
    options = (*map(str, [*SMALL, *GAN, "--run.other_settings", "go_on"]), "--optim.max_steps", "12")
    out = trainings.FaultTraining("pair", "train_tokenizer", options, "", 2).finish(begun, "run")
    assert out.count("note: the discriminator starts anew after step 8") == 1
    again = (*map(str, [*SMALL, *GAN]), "--optim.max_steps", "16")
    assert "anew" not in trainings.FaultTraining("pair", "train_tokenizer", again, "", 2).finish(begun, "run")


def test_a_renamed_folder_goes_on(begun):
    (begun / "runs/run").rename(begun / "runs/other")
    assert "resuming from runs/other/checkpoints/step-8" in train(begun, "--run.name", "other", steps=12).stdout


@pytest.mark.parametrize("name", ["checkpoints", "samples", "tokenizer"])
def test_a_file_in_a_folders_place_is_told_at_once(begun, name):
    shutil.rmtree(begun / "runs/run" / name)
    (begun / "runs/run" / name).write_text("")
    done = train(begun, steps=12, check=False)
    assert done.returncode == 2 and f"{name} is no folder; move it away" in done.stderr and done.stderr.count("\n") == 1


def test_a_result_can_be_read_by_whom_the_umask_lets(begun):
    modes = {path.stat().st_mode & 0o777 for path in (begun / "runs/run/tokenizer").iterdir()}
    (begun / "new").touch()
    assert modes == {(begun / "new").stat().st_mode & 0o777}


def test_another_model_cannot_go_on(begun):
    done = train(begun, "--model.hidden_channels", 16, "--run.other_settings", "go_on", steps=12, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "step-8 does not fit to this run" in done.stderr and ".weight" in done.stderr
    # Nothing of it stays: the run goes on as it was begun.
    assert "resuming from runs/run/checkpoints/step-8" in train(begun, steps=12).stdout


def test_what_cannot_begin_renames_nothing(begun):
    options = ["--run.other_settings", "start_over", "--model.codebook_size", 10**11]
    assert train(begun, *options, check=False).returncode == 2
    assert sorted(path.name for path in (begun / "runs").iterdir()) == ["run"]
    assert "resuming" in train(begun, steps=12).stdout


@pytest.mark.parametrize("file", ["config.yaml", "inputs.yaml"])
def test_a_start_that_cannot_describe_itself_leaves_the_description_it_found(begun, file, monkeypatch):
    """As on a full disk: the write fails, and the old file is whole."""
    before = (begun / "runs/run" / file).read_bytes()
    (begun / "runs/run" / f".{file}.tmp").mkdir()
    done = train(begun, steps=12, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (begun / "runs/run" / file).read_bytes() == before


def test_another_experiment_starts_over_and_the_old_one_is_kept(begun):
    before = (begun / WEIGHTS).read_bytes()
    done = train(begun, "--run.seed", 3, "--run.other_settings", "start_over")
    assert "run.seed was 0 and is now 3" in done.stdout and "resuming" not in done.stdout
    assert (begun / WEIGHTS.replace("runs/run", "runs/run.before-1")).read_bytes() == before
    assert (begun / WEIGHTS).read_bytes() != before
    assert not (begun / "runs/run.before-2").exists()
    again = train(begun, "--run.seed", 3, "--run.other_settings", "start_over", steps=12)
    assert "resuming from runs/run/checkpoints/step-8" in again.stdout and not (begun / "runs/run.before-2").exists()


@pytest.mark.slow
def test_deterministic_runs_are_the_same_bits(tmp_path):
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train(tmp_path / name, "--run.deterministic", "true", "--data.flip", "true")
        runs.append(load_file(tmp_path / name / WEIGHTS))
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_a_kernel_that_is_not_deterministic_is_refused_in_one_line(tmp_path):
    (tmp_path / "refused.py").write_text("""
from arcvq.cli.script import run_script
from arcvq.runs.seeds import be_deterministic
def main():
    be_deterministic()
    raise RuntimeError("foo_kernel does not have a deterministic implementation, but you set 'x'. You can turn off ...")
run_script(main)
""")
    done = forked_process.run([sys.executable, str(tmp_path / "refused.py")], tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "foo_kernel does not have a deterministic implementation" in done.stderr and "run.deterministic" in done.stderr
    )


def test_bad_images_are_an_error_or_are_counted(tmp_path):
    noise = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for number in range(count):
            folder = tmp_path / "images" / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    bad = [tmp_path / "images/train/a/06.png", tmp_path / "images/train/b/21.png"]
    for file in bad:
        file.write_bytes(file.read_bytes()[:60])
    options = ["--data.name", "./images", "--data.memory_limit_gib", "0"]
    done = train(tmp_path, *options, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and ".png cannot be decoded" in done.stderr
    done = train(tmp_path, *options, "--data.on_bad_image", "skip", steps=8)
    assert "2 of 40 images are unusable and are skipped" in done.stderr and "06.png" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert [line["bad_images"] for line in lines if "bad_images" in line][-1] == 2
    weights = load_file(tmp_path / WEIGHTS)
    shutil.rmtree(tmp_path / "runs")
    train(tmp_path, *options, "--data.on_bad_image", "skip", "--data.num_workers", 2, steps=4)
    train(tmp_path, *options, "--data.on_bad_image", "skip")
    lines = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert [line["bad_images"] for line in lines if "bad_images" in line][-2:] == [2, 2]
    for name, value in load_file(tmp_path / WEIGHTS).items():
        assert torch.equal(value, weights[name]), name


@pytest.mark.slow
def test_a_collapse_is_told_with_its_numbers(tmp_path):
    options = ["--run.sample_every", 2, "--collapse.usage_below", 1, "--collapse.evaluations", 2]
    said = train(tmp_path, *options).stderr
    assert said.count("warning: the codebook collapses: held-out images use ") == 2
    assert "in each of the last 4 evaluations" in said
    assert "collapses" not in train(tmp_path, "--collapse.usage_below", 0, steps=12).stderr


def wait_for(condition, process):
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_launchers_end_is_a_signal_to_save(tmp_path, processes):
    """`accelerate launch` passes no signal on to a single process, and dies of SIGTERM."""
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    launcher += ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"] if processes == 2 else []
    log = tmp_path / "runs/run/metrics.jsonl"
    process = subprocess.Popen(
        [*launcher, SCRIPT, *SMALL, "--optim.max_steps", "100000", "--run.checkpoint_every", "100000"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)  # ends when all that write to the pipe have
    assert process.returncode != 0 and "SIGTERM: step " in out and " is saved" in out
    (saved,) = (tmp_path / "runs/run/checkpoints").iterdir()
    assert f"step {saved.name.removeprefix('step-')} is saved" in out


FORK_SERVER = f"""
if __name__ == "__main__":
    import multiprocessing, runpy
    multiprocessing.set_start_method("forkserver", force=True)
    runpy.run_path({SCRIPT!r}, run_name="__main__")
"""


@pytest.mark.robustness
def test_no_loader_process_outlives_a_kill(tmp_path):
    """Nor where a server starts them, which they keep alive."""
    options = ["--data.num_workers", "2", "--data.memory_limit_gib", "0", "--optim.max_steps", "1000000"]
    (tmp_path / "train.py").write_text(FORK_SERVER)
    process = forked_process.PreloadedProcess([sys.executable, str(tmp_path / "train.py"), *SMALL, *options], tmp_path)
    log, deadline = tmp_path / "runs/run/metrics.jsonl", time.monotonic() + 120
    while not log.exists() or not log.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    begun = psutil.Process(process.pid).children(recursive=True)
    assert len(begun) >= 3  # two workers, and the server that forks them
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(begun, timeout=30)
    assert not left


def test_a_signal_to_one_of_two_processes_ends_both_at_one_step(tmp_path):
    training = trainings.FaultTraining("pair", "train_tokenizer", (*SMALL, "--optim.max_steps", "100000"), "", 2)
    processes = training.start(tmp_path, "pair")
    log = tmp_path / "runs/pair/metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, processes[0])
    processes[1].send_signal(signal.SIGUSR1)
    assert [process.wait(60) for process in processes] == [143, 138]
    assert "a signal to another process: step " in processes[0].output()[0]


@pytest.mark.slow
def test_another_number_of_processes_goes_on_and_says_what_is_not_the_same(begun):
    options = (*SMALL, "--optim.max_steps", "12")
    out = trainings.FaultTraining("pair", "train_tokenizer", options, "", 2).finish(begun, "run")
    assert "resuming from runs/run/checkpoints/step-8" in out and "note: processes so far: 1, now: 2" in out
    expected = begun / "alone"
    expected.mkdir()
    train(expected, steps=12)
    for name, value in load_file(expected / WEIGHTS).items():
        assert torch.allclose(load_file(begun / WEIGHTS)[name].float(), value.float(), atol=1e-4), name
