"""One process of several that train a UNet, sharded where the environment says so; with STOP it dies in that step.

accelerate shards on GPUs alone; here it is told that its CPU processes had some, and the backend that CPUs have.
"""

import os

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from arcvq.cli.script import run_script
from arcvq.runs.run import Run
from arcvq.training import ldm as train_ldm
from arcvq.training import prior as prior_training

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if "ACCELERATE_USE_FSDP" in os.environ:
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda state: setattr(state, "device", torch.device("cpu"))
        torch.distributed.init_process_group("gloo")
    train_ldm.PREVIEW_STEPS = 1
    prior_training.save_final_samples = lambda *_: None
    end_step = Run.end_step

    def until_stop(run: Run) -> None:
        if run.step == int(os.environ.get("STOP", -1)):
            os._exit(3)
        end_step(run)

    Run.end_step = until_stop
    run_script(train_ldm.main)
