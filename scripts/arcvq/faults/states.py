"""What becomes of a training when its disk, its folder, its data or its checkpoints fail, or it is told to end.

Each fault meets a run that is half done; the trouble is then taken away, and the same command must end with the weights
of a run that has never met it.
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
from arcvq.faults.trainings import PATIENCE, STEPS, FaultTraining, resumes_as_it_should

HALF = STEPS // 2


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        status: with which the process ended.
        said: the line that told the user.
        kept: the newest complete checkpoint after it.
        equal: whether the run went on from its newest checkpoint and ended with the weights of one without the fault.
    """

    status: int
    said: str
    kept: str
    equal: bool


class FaultyRun:
    """A training that is half done, in a folder of its own.

    Args:
        training: which.
        home: where it runs.
        run_name: its run's name.
    """

    def __init__(self, training: FaultTraining, home: Path, run_name: str):
        self._training, self._home, self._name = training, home, run_name
        self.folder = home / "runs" / run_name
        half = replace(training, options=(*training.options, "--optim.max_steps", str(HALF)))
        half.finish(home, run_name)

    @property
    def command(self) -> list[str]:
        """Goes on with it."""
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
        """Until a condition holds, or the process has ended."""
        end = time.monotonic() + PATIENCE
        while not condition() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)

    def text(self, process: subprocess.Popen | forked_process.PreloadedProcess) -> str:
        """All that a process has printed when it has ended, line by line, what it says at last at the end."""
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
        """Waits for the end, mends what was broken, and goes on until the training is done."""
        text = self.text(process)
        saved = checkpoints(self.folder)
        mend()
        resumed = resumes_as_it_should(self._training, self._home, self._name)
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
    """No file can grow beyond 60 KB."""
    return run.outcome(run.start("bash", "-c", 'ulimit -f 60; exec "$0" "$@"'), expected, lambda: None)


def read_only(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """The folder of the checkpoints can be read alone. Root heeds that without its power to pass over it."""
    folder = run.folder / "checkpoints"
    folder.chmod(0o555)
    before = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    return run.outcome(run.start(*before), expected, lambda: folder.chmod(0o755))


def gone(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """The run folder is renamed while it is trained in."""
    process, aside = run.start(), run.folder.with_name(f"{run.folder.name}-aside")
    run.wait_for(lambda: (run.folder / "checkpoints" / f"step-{HALF + 4}").is_dir(), process)
    run.folder.rename(aside)

    def mend() -> None:
        shutil.rmtree(run.folder, ignore_errors=True)
        aside.rename(run.folder)

    return replace(run.outcome(process, expected, mend), kept=checkpoints(run.folder)[0].name)


def flipped_byte(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """One byte of the newest checkpoint, anywhere in its files, is another one."""
    dice = random.Random(0)
    newest = checkpoints(run.folder)[-1]
    file = dice.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    file.write_bytes(content)
    return run.outcome(run.start(), expected, lambda: None)


def half_written(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """The newest checkpoint lacks the second half of a file."""
    file = checkpoints(run.folder)[-1] / "optimizer.bin"
    os.truncate(file, file.stat().st_size // 2)
    return run.outcome(run.start(), expected, lambda: None)


def truncated_shard(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
    """A shard of the data has lost its end."""
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
    """The same command is started while it runs; told is what the second one says."""
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
    """A scheduler announces the end by a signal."""

    def fault(run: FaultyRun, expected: dict[str, torch.Tensor]) -> Outcome:
        process, log = run.start(), run.folder / "metrics.jsonl"
        run.wait_for(lambda: f'"step": {HALF + 2},' in log.read_text(), process)
        process.send_signal(number)
        return run.outcome(process, expected, lambda: None)

    return fault


FAULTS: dict[str, Callable[[FaultyRun, dict[str, torch.Tensor]], Outcome]] = {
    "full disk (ulimit -f)": full_disk,
    "checkpoints read-only": read_only,
    "run folder renamed": gone,
    "flipped byte in the newest checkpoint": flipped_byte,
    "newest checkpoint half written": half_written,
    "truncated shard": truncated_shard,
    "flipped byte in the stored latents": flipped_latent,
    "second start in one folder": second_start,
    "SIGTERM": signalled(signal.SIGTERM),
    "SIGUSR1": signalled(signal.SIGUSR1),
}


def training_for(fault: str) -> str:
    """The name of the training that a fault is for."""
    return {"truncated shard": "tokenizer, streamed", "flipped byte in the stored latents": "ldm"}.get(
        fault, "tokenizer"
    )
