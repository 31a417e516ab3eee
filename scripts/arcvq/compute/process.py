"""Prepare a process that samples or measures: meet the other processes, use the cores, keep float32 exact."""

import torch
from accelerate import PartialState

from arcvq.compute.resumable import LONGEST_WAIT
from arcvq.compute.threads import use_all_cores


def prepare_process() -> PartialState:
    """Join the other processes of this command, share the cores with them, and turn TensorFloat-32 off.

    Returns:
        accelerate's state: which process this is, and how many there are.
    """
    # Without cpu=True accelerate takes each of several processes without a GPU for the only one.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    use_all_cores()
    torch.backends.cudnn.allow_tf32 = False
    return state
