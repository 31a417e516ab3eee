"""Prepare a process that samples or measures: meet the other processes, use the cores."""

import torch
from accelerate import PartialState

from arcvq.compute.resumable import LONGEST_WAIT
from arcvq.compute.threads import use_all_cores


def prepare_process() -> PartialState:
    """Join the other processes of this command, and share the cores with them.

    Returns:
        accelerate's state: which process this is, and how many there are.
    """
    # Without cpu=True accelerate takes each of several processes without a GPU for the only one.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    use_all_cores()
    return state
