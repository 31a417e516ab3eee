"""Set the number of threads that a process computes with."""

import os

import psutil
import torch


def use_all_cores() -> None:
    """Divide the physical cores among the processes of this machine; `accelerate launch` would give one to each.

    A number of threads that the user has set in OMP_NUM_THREADS stays.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # the launcher sets OMP_NUM_THREADS to 1 if the user did not
    threads = os.environ.get("OMP_NUM_THREADS")
    if torch.cuda.is_available() or (threads is not None and not (launched and threads == "1")):
        return
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores this process may use
        cores = min(cores, len(os.sched_getaffinity(0)))
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
