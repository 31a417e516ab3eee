"""What a quantizer learns from statistics of the batch is the same for any number of processes."""

import sys

import pytest
import torch
from places import HELPERS
from statistics_worker import train

from arcvq.faults import forked_process

WORKER = HELPERS / "statistics_worker.py"


@pytest.mark.slow
def test_two_processes_with_half_the_batch_each_learn_as_one(tmp_path):
    command = [sys.executable, str(WORKER), str(tmp_path)]
    workers = [forked_process.PreloadedProcess([*command, str(rank), "2"], tmp_path) for rank in range(2)]
    train(tmp_path, 0, 1)
    for worker in workers:
        assert worker.wait(240) == 0, worker.output()
    expected, *found = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1"))
    for state in found:
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                state[name], value, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: name + text
            )
