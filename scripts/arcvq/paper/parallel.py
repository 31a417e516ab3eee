"""Several trainings beside each other on one device, each a process with its own log."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from arcvq.compute.threads import use_all_cores
from arcvq.runs.child_process import ChildProcess, end_all
from arcvq.runs.log import last_step
from arcvq.runs.signals import Stopping

# Seconds between two looks at the processes.
_LOOK = 0.5


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
    waiting, running, failed = list(commands.items()), {}, {}
    threads = threads_of_each(parallel)
    with tqdm(total=len(commands), desc=f"{parallel} at a time", unit="run") as bar, Stopping() as stopping:
        try:
            while (waiting or running) and stopping.signal is None:
                while waiting and len(running) < parallel:
                    run, words = waiting.pop(0)
                    running[run] = ChildProcess.start(words, run.with_name(f"{run.name}.log"), threads)
                time.sleep(_LOOK)
                for run in [run for run, child in running.items() if child.process.poll() is not None]:
                    child = running.pop(run)
                    bar.update()
                    if child.process.returncode:
                        failed[run] = child.error
                        bar.write(f"failed: {run}: {child.error}; its output is in {child.log}")
                shown = ", ".join(f"{run.name} {last_step(run)}" for run in running)
                if shown != bar.postfix:
                    bar.set_postfix_str(shown)
        finally:
            end_all(list(running.values()))
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
