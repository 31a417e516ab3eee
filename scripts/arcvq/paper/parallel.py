"""Several trainings beside each other on one device, each a process with its own log."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from arcvq.compute.threads import use_all_cores
from arcvq.runs.signals import Stopping

# Seconds between two looks at the processes.
_LOOK = 0.5
# Seconds that a training has to end its step and to save it.
_PATIENCE = 600.0


@dataclass(frozen=True)
class RunningTraining:
    """A training in a process.

    Attributes:
        run: its run folder.
        process: the process, which leads a session of its own: a Ctrl-C reaches this command alone.
        log: the file with its output.
        begins: bytes that were in there before.
    """

    run: Path
    process: subprocess.Popen
    log: Path
    begins: int = 0

    @classmethod
    def start(cls, run: Path, words: Sequence[str], threads: int) -> "RunningTraining":
        """Start `arcvq WORDS`; it ends with this process."""
        log = run.with_name(f"{run.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "arcvq.paper.child", str(os.getpid()), *words]
        variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
        variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with log.open("ab") as output:
            options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            begins = os.fstat(output.fileno()).st_size
            return cls(run, subprocess.Popen(command, env=variables, start_new_session=True, **options), log, begins)

    @property
    def error(self) -> str:
        """Why the training ended: its error, or the last line of the log.

        Another command's training of this run, which is why this one was refused, may write progress after the error.
        """
        said = self.log.read_bytes()[self.begins :].decode(errors="replace")
        if errors := re.findall(r"\berror: ([^\r\n]+)", said):
            return errors[-1]
        return (said.strip().splitlines() or [f"ended with status {self.process.returncode}"])[-1]

    def progress(self) -> str:
        """Say how far it is, by its log of numbers."""
        return f"{self.run.name} {last_step(self.run)}"


def run_beside_each_other(commands: Mapping[Path, Sequence[str]], parallel: int) -> dict[Path, str]:
    """Run each training in a process, `parallel` of them at a time, and show how far those are.

    A signal that ends this command ends them after their step, with their state saved; so does its death.

    Args:
        commands: verb and options of each training, by run folder.
        parallel: number of processes.

    Returns:
        The last line of the log of each training that failed, by run folder.

    Raises:
        SystemExit: a signal has announced the end of this command; all trainings have ended.
    """
    waiting, running, failed = list(commands.items()), [], {}
    threads = threads_of_each(parallel)
    with tqdm(total=len(commands), desc=f"{parallel} at a time", unit="run") as bar, Stopping() as stopping:
        try:
            while (waiting or running) and stopping.signal is None:
                while waiting and len(running) < parallel:
                    running.append(RunningTraining.start(*waiting.pop(0), threads))
                time.sleep(_LOOK)
                for training in [one for one in running if one.process.poll() is not None]:
                    running.remove(training)
                    bar.update()
                    if training.process.returncode:
                        failed[training.run] = training.error
                        bar.write(f"failed: {training.run}: {training.error}; its output is in {training.log}")
                shown = ", ".join(training.progress() for training in running)
                if shown != bar.postfix:
                    bar.set_postfix_str(shown)
        finally:
            _end(running)
        if stopping.signal is not None:
            bar.write(f"{stopping.signal.name}: the trainings are saved; the same command goes on from there")
            stopping.exit()
    return failed


def threads_of_each(parallel: int) -> int:
    """Return the CPU threads of each process: what the user has set in OMP_NUM_THREADS, or its share of the cores."""
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    use_all_cores()
    return max(1, torch.get_num_threads() // parallel)


def last_step(run: Path) -> int:
    """Return the last step in a run's log of numbers; 0 before the first."""
    log = run / "metrics.jsonl"
    if not log.is_file():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**14))
        lines = file.read().split(b"\n")[:-1]  # the last part is empty, or a line that is being written
    try:
        return json.loads(lines[-1])["step"]
    except (IndexError, ValueError, KeyError):
        return 0


def _end(running: Sequence[RunningTraining]) -> None:
    """Ask trainings to save and end, and wait for them; kill one that does not."""
    for training in running:
        training.process.terminate()
    for training in running:
        try:
            training.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            training.process.kill()
            training.process.wait()
