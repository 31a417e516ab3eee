"""A run in one process: the parts of a step, what is due, logged and averaged."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from accelerate.state import AcceleratorState
from common import Run
from run_options import OptimConfig, RunConfig

from tokenizer import VQTokenizer


class Points(Dataset):
    """Batches of the points of a plane and of what is to be learnt of them."""

    def __getitem__(self, indices):
        x = torch.randn(40, 2, 3, generator=torch.Generator().manual_seed(0)).double()[indices]
        return {"x": x, "y": x.sum(dim=-1)}

    def __len__(self):
        return 40


def make(folder, name="run", ema_decay=None, model=None, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    optim = OptimConfig(**{"max_steps": 6, "batch_size": 8, "lr": 0.01, "eps": 1e-4, **options})
    run = Run(RunConfig(name, str(folder), log_every=2, checkpoint_every=3), optim, {"run": {}})
    run.prepare(
        model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double(),
        Points(),
        {"data": "points"},
        0,
        ema_decay,
    )
    return run


def train(run):
    """A prior's plain loop; for each of its turns the steps done and whether the log was due."""
    turns = []
    for batch in run.steps():
        loss = (run.main.wrapped(batch["x"]).squeeze(-1) - batch["y"]).square().mean()
        run.update(loss)
        run.log(loss=loss)
        turns.append((run.step, run.due(1), run.due(2)))
    return turns


def lines(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_parts_of_a_step_make_the_step_of_the_whole(tmp_path):
    runs = {parts: make(tmp_path, f"parts-{parts}", accumulation=parts, max_grad_norm=0.1) for parts in (1, 4)}
    turns = {parts: train(run) for parts, run in runs.items()}
    assert turns[1] == [(step, True, step % 2 == 0) for step in range(1, 7)]
    expected = [(step + (part == 3), part == 3, part == 3 and step % 2 == 1) for step in range(6) for part in range(4)]
    assert turns[4] == expected
    for one, four in zip(runs[1].model.parameters(), runs[4].model.parameters(), strict=True):
        torch.testing.assert_close(one, four, rtol=1e-9, atol=1e-9)
    logs = {parts: [(line["step"], line["loss"]) for line in lines(run)] for parts, run in runs.items()}
    assert [step for step, _ in logs[1]] == [2, 4, 6]
    torch.testing.assert_close(torch.tensor(logs[1]), torch.tensor(logs[4]))
    norms = [[line["gradient_norm_model"] for line in lines(run)] for run in runs.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and min(norms[0]) > 0.1


def test_a_mean_is_over_the_steps_that_have_it(tmp_path):
    run = make(tmp_path)
    for index, _ in enumerate(run.steps(whole=True)):
        run.complete(torch.tensor(True))
        run.log(always=torch.tensor(float(index)), **({"seldom": torch.tensor(7.0)} if index == 3 else {}))
    found = [(line["always"], line.get("seldom")) for line in lines(run)]
    assert found == [(0.5, None), (2.5, 7.0), (4.5, None)]
    assert all(0 <= line["loader_share"] <= 1 and line["images_per_second"] > 0 for line in lines(run))


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path):
    runs = []
    for name, stops in (("straight", [6]), ("stopped", [3, 6])):
        for stop in stops:
            torch.manual_seed(0)
            run = make(tmp_path, name, ema_decay=0.9, max_steps=stop, accumulation=2)
            assert run.step == (3 if stop == 6 and name == "stopped" else 0)
            train(run)
        runs.append(run)
    for a, b in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(runs[0].average.tensors, runs[1].average.tensors, strict=True):
        assert torch.equal(a, b)


def test_the_rate_times_the_batch(tmp_path):
    run = make(tmp_path, scale_lr=True, lr=0.001, warmup_steps=2)
    rates = []
    for batch in run.steps():
        rates.append(run.main.optimizer.param_groups[0]["lr"])
        run.update(run.main.wrapped(batch["x"]).sum())
    assert rates == pytest.approx([0.004, *[0.008] * 5])


def test_fp16_without_its_scaler_is_refused(tmp_path, monkeypatch):
    """As on a CPU, where accelerate would compute in float32."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match=r"fp16 needs a GPU.*set bf16, or no"):
        Run(RunConfig("run", str(tmp_path), mixed_precision="fp16"), OptimConfig(), {"run": {}})
    AcceleratorState._reset_state(reset_partial_state=True)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size 8 does not go into 1 processes with optim.accumulation 3; .* of 3"
    ):
        make(tmp_path, accumulation=3)
    with pytest.raises(ValueError, match=r"41 is not in 1\.\.40"):
        make(tmp_path, batch_size=41)
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(RunConfig("run", str(tmp_path), gradient_checkpointing=True), OptimConfig(batch_size=8), {"run": {}})
    with pytest.raises(ValueError, match="network 'conv' has no gradient checkpointing"):
        run.prepare(VQTokenizer(3, 16, hidden_channels=8), Points(), {})
    assert not list(tmp_path.iterdir())
