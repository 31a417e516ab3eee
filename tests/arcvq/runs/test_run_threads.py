"""The threads of a run: its option, and what a resumed run takes."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import Dataset

from arcvq.compute import threads
from arcvq.runs import run as run_module
from arcvq.runs.named_scalars import Terms
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run


class Ones(Dataset):
    def __getitem__(self, indices):
        return {"x": torch.ones(8, 3)[indices]}

    def __len__(self):
        return 8


@pytest.fixture
def threads_of(tmp_path, monkeypatch):
    """Trains up to a step on a machine of so many cores, and returns the threads of the run and of its checkpoint."""
    monkeypatch.setattr(run_module, "be_deterministic", lambda: None)  # which would last for the other tests

    def train(steps, cores, **options):
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setattr(threads, "usable_cores", lambda: cores)
        config = RunConfig("run", str(tmp_path), **options)
        run = Run(config, OptimConfig(max_steps=steps, batch_size=8), {"run": {"threads": options.get("threads")}})
        model = run.prepare(nn.Linear(3, 1), Ones(), {"data": "ones"})
        for batch in run.steps():
            loss = model(batch["x"]).square().mean()
            run.update(loss, Terms.stack({"loss": loss}))
        stored = json.loads((run.folder / f"checkpoints/step-{steps}/progress.json").read_text())
        assert stored["threads"] == torch.get_num_threads()
        return torch.get_num_threads()

    return train


def test_a_deterministic_run_keeps_its_number_where_there_are_as_many_cores(threads_of, capsys):
    assert threads_of(1, 3, deterministic=True) == 3
    capsys.readouterr()
    assert threads_of(2, 4, deterministic=True) == 3
    said = capsys.readouterr().out
    assert "threads: 3 (" in said and "note: threads" not in said
    assert threads_of(3, 2, deterministic=True) == 2
    assert "note: threads of each process so far: 3, now: 2" in capsys.readouterr().out


def test_another_run_takes_the_cores_that_there_are(threads_of, capsys):
    assert threads_of(1, 2) == 2
    assert threads_of(2, 3) == 3
    assert "note: threads of each process so far: 2, now: 3" in capsys.readouterr().out


def test_the_option_goes_before_both_and_may_change(threads_of):
    assert threads_of(1, 3, deterministic=True, threads=2) == 2
    assert threads_of(2, 3, deterministic=True, threads=1) == 1
    assert threads_of(3, 3, threads=2) == 2


@pytest.mark.parametrize("number", [0, -1, 100_000])
def test_no_thread_and_too_many_are_refused(number):
    with pytest.raises(ValueError, match=rf"run\.threads must be at least 1 .* got {number}$"):
        RunConfig("run", threads=number).check()
