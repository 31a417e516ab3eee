"""Small trainings on the digits: start them, kill them, and compare their results with undisturbed ones."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from arcvq.checkpoints.checkpoint import checkpoints
from arcvq.faults import forked_process
from tokenizer.data.sources import digit_tables

STEPS = 40

# Seconds until a step that does not happen counts as an error; a busy machine needs much less.
PATIENCE = 600.0


@dataclass(frozen=True)
class FaultTraining:
    """A training that takes seconds.

    Args:
        name: unique name.
        script: verb of the training, or `nan` for arcvq.faults.nan, whose options begin with the term to break.
        options: options that make it small.
        artefact: file of the final weights, below the run folder.
        processes: number of processes that train together.
    """

    name: str
    script: str
    options: tuple[str, ...]
    artefact: str
    processes: int = 1

    @property
    def command(self) -> list[str]:
        """The command without its options."""
        if self.script == "nan":
            return [sys.executable, "-m", "arcvq.faults.nan"]
        return [sys.executable, "-m", "arcvq", self.script]

    def start(self, home: Path, run_name: str) -> list[forked_process.PreloadedProcess]:
        """Start it in the folder `home`; its run goes to `home`/runs."""
        places = ["--run.output_dir", "runs", "--run.name", run_name]
        command = [*self.command, *self.options, *places]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return forked_process.start(command, home, self.processes, variables)

    def run(self, home: Path, run_name: str) -> tuple[list[int], str, str]:
        """Run it to its end; return the statuses of all processes, and stdout and stderr of the main one."""
        processes = self.start(home, run_name)
        return [process.wait(PATIENCE) for process in processes], *processes[0].output()

    def finish(self, home: Path, run_name: str) -> str:
        """Run it to its end, and return its output. Raises RuntimeError where it fails."""
        codes, out, err = self.run(home, run_name)
        if any(codes):
            raise RuntimeError(f"{self.name} ended with {codes}: {out[-1000:]} {err[-3000:]}")
        return out + err

    def result(self, home: Path, run_name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        """Return the final weights of a finished run, and its log without the numbers that measure time."""
        folder = home / "runs" / run_name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("loader_share", None), line.pop("images_per_second", None)
        return load_file(folder / self.artefact), lines


def fault_trainings(home: Path) -> list[FaultTraining]:
    """Return the trainings in order; those of the second stage start from the run `tokenizer` of the first.

    The function also writes the digits to `home` as shards, for the trainings that stream them.
    """
    shards = home / "shards"
    for split, table in digit_tables().items():
        half = len(table) // 2
        for number, rows in enumerate((range(half), range(half, len(table)))):
            shards.mkdir(parents=True, exist_ok=True)
            table.select(rows).to_parquet(shards / f"{split}-{number}.parquet", batch_size=100)
    every = f"--optim.max_steps {STEPS} --optim.batch_size 16 --run.log_every 2 --run.checkpoint_every 3 "
    every += f"--run.sample_every {STEPS}"
    tokenizer = f"{every} --model.codebook_size 16 --model.codebook_dim 4 --model.hidden_channels 8"
    gan = "--adversarial.weight 0.1 --adversarial.disc_start 10 --adversarial.channels 8 --adversarial.layers 2 "
    gan += "--adversarial.lecam_weight 0.1"
    prior = f"{every} --tokenizer runs/tokenizer"
    ldm = f"{prior} --unet.channels 16 --unet.head_channels 16"
    pixelcnn = f"{prior} --prior.channels 8 --prior.num_layers 3 --prior.head_channels 16"
    streamed = "--data.name shards --data.streaming true"
    weights = "diffusion_pytorch_model.safetensors"
    rows = {
        "tokenizer": ("train_tokenizer", f"{tokenizer} --ema_decay 0.9", f"tokenizer/{weights}"),
        "tokenizer-gan": (
            "train_tokenizer",
            f"{tokenizer} {gan} --adversarial.lecam_weight 0.1",
            f"tokenizer/{weights}",
        ),
        "ldm": ("train_ldm", ldm, f"pipeline/unet/{weights}"),
        "pixelcnn": ("train_pixelcnn", pixelcnn, f"pipeline/prior/{weights}"),
    }
    single = [FaultTraining(name, script, tuple(line.split()), file) for name, (script, line, file) in rows.items()]
    return [
        *single,
        *(FaultTraining(f"{one.name}, 2 processes", one.script, one.options, one.artefact, 2) for one in single),
        *(
            FaultTraining(
                f"{one.name}, streamed by 2 workers",
                one.script,
                (*one.options, *streamed.split(), "--data.num_workers", "2", *on_the_fly(one.script)),
                one.artefact,
            )
            for one in single
        ),
        replace(single[0], name="tokenizer, streamed", options=(*single[0].options, *streamed.split())),
    ]


def on_the_fly(script: str) -> tuple[str, ...]:
    """Return the options by which a prior's training reads images and not cached latents."""
    return () if script == "train_tokenizer" else ("--latents.mode", "on_the_fly")


def kill_once(training: FaultTraining, home: Path, run_name: str, moment: random.Random, seconds: float) -> str | None:
    """Start a training and kill it: while it saves, after some step, or at any moment.

    Args:
        training: the training.
        home: its folder.
        run_name: name of its run.
        moment: random numbers that choose the kind and the moment of the kill.
        seconds: latest moment of a kill, counted from the creation of the run folder.

    Returns:
        The place of the kill in words; None where the training had ended before.
    """
    folder = home / "runs" / run_name
    kind = moment.choice(("saving", "step", "time"))
    processes = training.start(home, run_name)
    if kind == "saving":
        step = 3 * moment.randint(1, STEPS // 3)
        begun = _await(processes, lambda: (folder / "checkpoints" / f".step-{step}").is_dir())
        time.sleep(moment.uniform(0, 0.02) if begun else 0)
    elif kind == "step":
        step = moment.randint(1, STEPS)
        _await(processes, lambda: _logged(folder) >= step)
        time.sleep(moment.uniform(0, 0.05))
    else:
        _await(processes, folder.is_dir)
        time.sleep(moment.uniform(0, seconds))
    codes = _kill(processes)
    where = f"after {_logged(folder)} of {STEPS} steps"
    if left := list((folder / "checkpoints").glob(".step-*")):
        where += f", while {left[0].name[1:]} was written"
    return where if codes == [-signal.SIGKILL] * len(codes) else None


def resumes_from_newest(training: FaultTraining, home: Path, run_name: str) -> bool:
    """Start a killed training again until it is done; return whether it resumed from the newest complete checkpoint."""
    saved = checkpoints(home / "runs" / run_name)
    said = training.finish(home, run_name)
    if not saved:
        return "resuming from" not in said
    has_ended = saved[-1].name == f"step-{STEPS}"
    return f"resuming from runs/{run_name}/checkpoints/{saved[-1].name}\n" in said and (
        ("nothing is left to train" in said) == has_ended
    )


def kills(training: FaultTraining, home: Path, count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """Kill a training `count` times, each in its own run, and start it again until it is done.

    Yields:
        The place of the kill, and whether the run resumed from its newest checkpoint and ended with the weights and
        the log of an undisturbed run.
    """
    name = training.name.replace(", ", "-").replace(" ", "-")
    undisturbed = name if training.processes == 1 else f"{name}-whole"
    training.finish(home, undisturbed)
    folder = home / "runs" / undisturbed
    ends = [folder / "inputs.yaml", folder / "checkpoints" / f"step-{STEPS}" / "progress.json"]
    begun, ended = (file.stat().st_mtime for file in ends)
    weights, log = training.result(home, undisturbed)
    moment = random.Random(f"{seed} {training.name}")  # other moments for each training
    for number in range(count):
        run_name = f"{name}-killed-{number}"
        while (where := kill_once(training, home, run_name, moment, 1.1 * max(0.0, ended - begun))) is None:
            shutil.rmtree(home / "runs" / run_name)
        resumed = resumes_from_newest(training, home, run_name)
        found, lines = training.result(home, run_name)
        same = found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
        yield where, resumed and same and lines == log
        shutil.rmtree(home / "runs" / run_name)


def _kill(processes: list[forked_process.PreloadedProcess]) -> list[int]:
    """Kill processes, and return their statuses once their children are gone. Raises RuntimeError where these stay."""
    started = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            started += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    codes = [process.wait(PATIENCE) for process in processes]
    if left := psutil.wait_procs(started, PATIENCE)[1]:
        raise RuntimeError(f"the kill has left {len(left)} processes, such as {left[0]}")
    return codes


def _await(processes: list[forked_process.PreloadedProcess], condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return False where the processes end before it holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing has happened for {PATIENCE:.0f} seconds")
        if processes[0].poll() is not None:
            return False
        time.sleep(0.001)
    return True


def _logged(folder: Path) -> int:
    """Return the last logged step."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)
