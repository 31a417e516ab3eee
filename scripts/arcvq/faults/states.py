"""Let a disk, a run folder, the data or a checkpoint fail under a training, or send it a signal.

Each fault happens to a run that is half done. It is then repaired, and the same command must end with the weights of an
undisturbed run.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from arcvq.checkpoints.checkpoint import checkpoints, step_of
from arcvq.faults import forked_process
from arcvq.faults.trainings import PATIENCE, STEPS, FaultTraining, resumes_from_newest

HALF = STEPS // 2


@dataclass(frozen=True)
class Outcome:
    """The outcome of a fault.

    Attributes:
        status: exit status of the process.
        said: the message to the user.
        kept: newest complete checkpoint after the fault.
        equal: whether the run resumed from its newest checkpoint and ended with the weights of an undisturbed run.
    """

    status: int
    said: str
    kept: str
    equal: bool


class FaultyRun:
    """A training that is half done, in its own run folder.

    Args:
        training: the training.
        home: the folder in which it runs.
        run_name: name of its run.
    """

    def __init__(self, training: FaultTraining, home: Path, run_name: str):
        self._training, self._home, self._name = training, home, run_name
        self.folder = home / "runs" / run_name
        half = replace(training, options=(*training.options, "--optim.max_steps", str(HALF)))
        half.finish(home, run_name)

    @property
    def command(self) -> list[str]:
        """The command that resumes the run."""
        places = ["--run.output_dir", "runs", "--run.name", self._name]
        return [*self._training.command, *self._training.options, *places]

    def start(self, *before: str, options: Sequence[str] = ()) -> subprocess.Popen | forked_process.PreloadedProcess:
        """Start the command again, with more `options`; the words `before` stand before it and start it."""
        command = [*self.command, *options]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if not before:
            return forked_process.PreloadedProcess(command, self._home, variables)
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*before, *command], cwd=self._home, env=variables, **output)

    def wait_for(
        self, condition: Callable[[], bool], process: subprocess.Popen | forked_process.PreloadedProcess
    ) -> None:
        """Wait until a condition holds, or the process has ended."""
        end = time.monotonic() + PATIENCE
        while not condition() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)

    def text(self, process: subprocess.Popen | forked_process.PreloadedProcess) -> str:
        """Wait for the end of a process; return its output, with stdout last."""
        if isinstance(process, forked_process.PreloadedProcess):
            process.wait(PATIENCE)
            out, err = process.output()
            text = f"{err}\n{out}"  # the bar ends when the training does, and its line may have no end
        else:
            text = process.communicate(timeout=PATIENCE)[0]
        return text.replace("\r", "\n").replace(f"{self._home}/", "")

    def outcome(
        self,
        process: subprocess.Popen | forked_process.PreloadedProcess,
        expected: dict[str, torch.Tensor],
        mend: Callable[[], object],
    ) -> Outcome:
        """Wait for the end, repair the fault by `mend`, and resume until the training is done."""
        text = self.text(process)
        saved = checkpoints(self.folder)
        mend()
        resumed = resumes_from_newest(self._training, self._home, self._name)
        found, _ = self._training.result(self._home, self._name)
        said = [line for line in text.splitlines() if line.startswith(("error:", "warning:", "SIG"))]
        if "Traceback" in text:
            said = ["TRACEBACK: " + text.splitlines()[-1]]
        equal = (
            resumed
            and found.keys() == expected.keys()
            and all(torch.equal(found[name], expected[name]) for name in expected)
        )
        return Outcome(process.returncode, said[-1] if said else "", saved[-1].name if saved else "none", equal)


def full_disk(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Limit files to 60 KB."""
    return run.outcome(run.start("bash", "-c", 'ulimit -f 60; exec "$0" "$@"'), expected, lambda: None)


def read_only(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Make the checkpoints' folder read-only; as root, the process drops the capabilities that would ignore it."""
    folder = run.folder / "checkpoints"
    folder.chmod(0o555)
    before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    return run.outcome(run.start(*before), expected, lambda: folder.chmod(0o755))


def rename_folder(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Rename the run folder while the training writes to it."""
    process, aside = run.start(), run.folder.with_name(f"{run.folder.name}-aside")
    run.wait_for(lambda: (run.folder / "checkpoints" / f"step-{HALF + 4}").is_dir(), process)
    run.folder.rename(aside)

    def mend() -> None:
        shutil.rmtree(run.folder, ignore_errors=True)
        aside.rename(run.folder)

    return replace(run.outcome(process, expected, mend), kept=checkpoints(run.folder)[0].name)


def flipped_byte(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Flip a bit in one of the files of the newest checkpoint."""
    dice = random.Random(0)
    newest = checkpoints(run.folder)[-1]
    file = dice.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)
    return run.outcome(run.start(), expected, lambda: None)


def half_written(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Cut off the second half of a file of the newest checkpoint."""
    file = checkpoints(run.folder)[-1] / "optimizer.bin"
    os.truncate(file, file.stat().st_size // 2)
    return run.outcome(run.start(), expected, lambda: None)


def truncated_shard(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Cut off the second half of a shard of the data."""
    shard = run.folder.parent.parent / "shards" / "train-1.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    return run.outcome(run.start(), expected, lambda: shard.write_bytes(content))


def flipped_latent(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Flip a byte in each file of stored latents, those of other runs too; the next start verifies them."""
    for file in sorted((run.folder.parent / "cache").glob("latents-train-*/*.safetensors")):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    return run.outcome(run.start(options=["--latents.verify", "true"]), expected, lambda: None)


def second_start(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """Start the same command while it runs; the outcome holds status and message of the second one."""
    first = run.start()
    run.wait_for(lambda: len(checkpoints(run.folder)) and step_of(checkpoints(run.folder)[-1]) > HALF, first)
    first.send_signal(signal.SIGSTOP)
    second = run.start()
    text = run.text(second)
    first.send_signal(signal.SIGCONT)
    said = [line for line in text.splitlines() if line.startswith("error:")]
    outcome = run.outcome(first, expected, lambda: None)
    return replace(outcome, status=second.returncode, said=said[-1] if said else text[-200:])


def signalled(number: signal.Signals) -> Callable[[FaultyRun, dict[str, torch.Tensor]], Outcome]:
    """Return a fault that sends a signal, as a scheduler announces the end of a job."""

    def fault(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
        process, log = run.start(), run.folder / "metrics.jsonl"
        run.wait_for(lambda: f'"step": {HALF + 2},' in log.read_text(), process)
        process.send_signal(number)
        return run.outcome(process, expected, lambda: None)

    return fault


FAULTS: dict[str, Callable[[FaultyRun, dict[str, torch.Tensor]], Outcome]] = {
    "full disk (ulimit -f)": full_disk,
    "checkpoints read-only": read_only,
    "run folder renamed": rename_folder,
    "flipped byte in the newest checkpoint": flipped_byte,
    "newest checkpoint half written": half_written,
    "truncated shard": truncated_shard,
    "flipped byte in the stored latents": flipped_latent,
    "second start in one folder": second_start,
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGUSR1": signalled(signal.SIGUSR1),
}


def training_for(fault: str) -> str:
    """Return the name of the training that a fault happens to."""
    return {"truncated shard": "tokenizer, streamed", "flipped byte in the stored latents": "ldm"}.get(
        fault, "tokenizer"
    )
