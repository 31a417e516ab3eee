"""Whole training steps of CUDA tensors without values, as `Run` makes them: their launches, and where one waits."""

import importlib
import unittest.mock

import torch
from fake_cuda import FakeCuda
from torch.utils._pytree import tree_map

from arcvq.planning import planned_data
from arcvq.planning.dry_run import plan_data
from arcvq.planning.planned_training import DryAccelerator, PlannedTraining

# Steps before the counted one: the first creates the optimizer's state.
_WARMUP = 2


def training_step(name, *options, start=0):
    """Make steps of the training `name`, the last of them without a wait; return its launches by line.

    Args:
        name: tokenizer, ldm or pixelcnn.
        options: its command line.
        start: the step to begin at.

    Raises:
        HostWaits: the host waits for the device, or for a copy to it.
    """
    module = importlib.import_module(f"arcvq.training.{name}")
    parser = module.make_parser()
    config = parser.parse([*map(str, options), "--optim.max_steps=1000000", "--run.log_every=1000000"])
    module.check(config)
    cuda = torch.device("cuda:0")
    with (
        unittest.mock.patch.multiple(DryAccelerator, device=cuda, is_main_process=False),
        unittest.mock.patch.object(planned_data, "_CPU", cuda),
        FakeCuda() as mode,
    ):
        with cuda:
            planned = PlannedTraining(module, config, parser.settings(config), plan_data(config), processes=1)
        run, training = planned.run, planned.training
        whole = [tree_map(lambda tensor: tensor.to(cuda), batch) for batch in planned.batches]
        batch = {key: torch.cat([part[key] for part in whole]) for key in whole[0]}
        run.dataset, run.step = None, start
        run._batches = lambda dataset, start_step: iter([batch] * (_WARMUP + 1))
        steps = run.steps(whole=name == "tokenizer")
        for number in range(_WARMUP + 1):
            mode.refuses_copies = number == _WARMUP
            mode.launches.clear()
            for _ in range(1 if name == "tokenizer" else run.optim.accumulation):
                training.step(next(steps))
        next(steps, None)  # what follows the step
        mode.refuses_copies = False
        return mode.launches.copy()


def as_table(launches):
    """Lines of `launches`, the largest numbers first."""
    return "\n".join([f"{sum(launches.values())} launches", *(f"{n:6} {line}" for line, n in launches.most_common())])
