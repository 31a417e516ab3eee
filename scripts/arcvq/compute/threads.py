"""Set the number of threads that a process computes with."""

import os

import psutil
import torch

from arcvq.compute.cpu_quota import cpu_quota

# Beside a GPU the processor loads, draws noise and measures: pieces of work that more threads do not make faster.
MOST_BESIDE_GPU = 16


def use_all_cores() -> None:
    """Divide the usable cores among the processes of this machine; `accelerate launch` would give one to each.

    A number of threads that the user has set in OMP_NUM_THREADS stays.
    """
    choose_threads()


def choose_threads(asked: int | None = None, before: int | None = None) -> str:
    """Set this process's number of threads, and say which and why.

    The number does not follow the load of the machine, because sums are rounded by it; `spin_briefly` keeps all cores
    the fastest choice beside other processes. Processes of one training may have different numbers, where their
    machines differ: each one's share of a batch is then rounded in its own way.

    Args:
        asked: the user's number.
        before: number of a checkpoint whose rounding is to be kept; taken if there are as many cores.
    """
    cores, processes = usable_cores(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    share = max(1, cores // processes)
    reason = f"{cores} usable core{'s' if cores > 1 else ''}"
    if processes > 1:
        reason += f", {processes} processes"
    if asked is not None:
        threads, reason = asked, f"run.threads; {reason}"
    elif _set_by_user():
        threads, reason = torch.get_num_threads(), f"OMP_NUM_THREADS; {reason}"
    elif before is not None and before <= share:
        threads, reason = before, f"as before, run.deterministic; {reason}"
    else:
        threads = min(share, MOST_BESIDE_GPU) if torch.cuda.is_available() else share
    torch.set_num_threads(threads)
    return f"threads: {threads} ({reason})"


def usable_cores() -> int:
    """Count the physical cores that this process may use, by its affinity and its control groups' quota, at least 1."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, int(min(cores, cpu_quota())))


def _set_by_user() -> bool:
    """Tell whether OMP_NUM_THREADS is the user's; `accelerate launch` sets it to 1 where the user did not."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    threads = os.environ.get("OMP_NUM_THREADS")
    return threads is not None and not (launched and threads == "1")
