"""Small trainings on the digits to be killed: how each is started, when it is killed, what it must end with."""

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

# No start of a training, on a busy machine, takes longer.
PATIENCE = 600.0


@dataclass(frozen=True)
class FaultTraining:
    """A training that takes seconds.

    Args:
        name: tells it from others.
        script: its verb, or `nan` for one whose options begin with the term to break.
        options: what makes it small.
        artefact: the weights that it ends with, in its run folder.
        processes: that train together.
    """

    name: str
    script: str
    options: tuple[str, ...]
    artefact: str
    processes: int = 1

    @property
    def command(self) -> list[str]:
        """What starts it, in front of its options."""
        if self.script == "nan":
            return [sys.executable, "-m", "arcvq.faults.nan"]
        return [sys.executable, "-m", "arcvq", self.script]

    def start(self, home: Path, run_name: str) -> list[forked_process.PreloadedProcess]:
        """Starts it in a folder where the stages' runs are in `runs`."""
        places = ["--run.output_dir", "runs", "--run.name", run_name]
        command = [*self.command, *self.options, *places]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return forked_process.start(command, home, self.processes, variables)

    def run(self, home: Path, run_name: str) -> tuple[list[int], str, str]:
        """Runs it to its end: the processes' statuses, and what the main one wrote to stdout and stderr."""
        processes = self.start(home, run_name)
        return [process.wait(PATIENCE) for process in processes], *processes[0].output()

    def finish(self, home: Path, run_name: str) -> str:
        """Runs it to its end; what it printed. RuntimeError where that is not a success."""
        codes, out, err = self.run(home, run_name)
        if any(codes):
            raise RuntimeError(f"{self.name} ended with {codes}: {out[-1000:]} {err[-3000:]}")
        return out + err

    def result(self, home: Path, run_name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        """The weights that a finished run has saved, and its log, without what tells the time."""
        folder = home / "runs" / run_name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("loader_share", None), line.pop("images_per_second", None)
        return load_file(folder / self.artefact), lines


def fault_trainings(home: Path) -> list[FaultTraining]:
    """The trainings, in order: those of the second stage start from the run of the first, called `tokenizer`.

    The digits are also written to `home` as shards, to be streamed.
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
    """What makes a prior's training go through the images themselves, and not through stored latents."""
    return () if script == "train_tokenizer" else ("--latents.mode", "on_the_fly")


def kill_once(training: FaultTraining, home: Path, run_name: str, moment: random.Random, seconds: float) -> str | None:
    """Starts a training and kills it: while it saves, after some step, or at any moment; where it was then, in words.

    `seconds` is the latest moment, from when its folder is there. None: it had ended before.
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


def resumes_as_it_should(training: FaultTraining, home: Path, run_name: str) -> bool:
    """Starts a training again until it is done; whether it went on from the newest complete checkpoint, if any."""
    saved = checkpoints(home / "runs" / run_name)
    said = training.finish(home, run_name)
    if not saved:
        return "resuming from" not in said
    has_ended = saved[-1].name == f"step-{STEPS}"
    return f"resuming from runs/{run_name}/checkpoints/{saved[-1].name}\n" in said and (
        ("nothing is left to train" in said) == has_ended
    )


def kills(training: FaultTraining, home: Path, count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """Kills a training `count` times, each in a run of its own, which is then started again until it is done.

    Yields where it was killed, and whether it went on from its newest checkpoint, and has the weights and the log of
    the run that nothing has disturbed.
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
        resumed = resumes_as_it_should(training, home, run_name)
        found, lines = training.result(home, run_name)
        same = found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)
        yield where, resumed and same and lines == log
        shutil.rmtree(home / "runs" / run_name)


def _kill(processes: list[forked_process.PreloadedProcess]) -> list[int]:
    """Kills processes; their statuses, when those are gone too that they had started. RuntimeError where these stay."""
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
    """Waits for a condition; False where the processes have ended before."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing has happened for {PATIENCE:.0f} seconds")
        if processes[0].poll() is not None:
            return False
        time.sleep(0.001)
    return True


def _logged(folder: Path) -> int:
    """The last step whose numbers have been logged."""
    log = folder / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)
