"""The learning rate's schedules, by hand; numbers that cannot work."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from run_options import OptimConfig, RunConfig


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", {10: 1, 60: 1, 90: 1, 100: 1, 109: 1}),
        ("cosine", {10: 1, 60: 0.5, 35: (2 + 2**0.5) / 4, 110: 0}),
        ("cooldown", {10: 1, 60: 1, 90: 1, 100: 0.5, 105: 0.25, 110: 0}),
    ],
)
def test_schedules(schedule, expected):
    optim = OptimConfig(lr=2.0, max_steps=110, warmup_steps=10, schedule=schedule)  # 100 steps after the warm-up
    assert [optim.learning_rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert {step: optim.learning_rate(step) / 2 for step in expected} == pytest.approx(expected, abs=1e-12)


def test_the_peak_may_be_of_one_image():
    optim = OptimConfig(lr=2e-6, batch_size=50, scale_lr=True, warmup_steps=2)
    assert [optim.learning_rate(step) for step in (0, 1, 7)] == pytest.approx([5e-5, 1e-4, 1e-4])
    assert OptimConfig(lr=2e-6, batch_size=50).learning_rate(7) == 2e-6


def test_a_batch_goes_into_equal_parts_or_is_refused():
    for batch_size, accumulation, processes in ((12, 1, 3), (12, 3, 4), (12, 12, 1)):
        OptimConfig(batch_size=batch_size, accumulation=accumulation).check_batch(processes)
    with pytest.raises(ValueError) as error:
        OptimConfig(batch_size=12, accumulation=4).check_batch(2)
    assert str(error.value) == (
        "optim.batch_size 12 does not go into 2 processes with optim.accumulation 4; make it a multiple of 8"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"accumulation": 0}, "optim.accumulation must be above 0, got 0"),
        ({"lr": float("nan")}, "optim.lr must be above 0, got nan"),
        ({"eps": 0.0}, "optim.eps must be above 0, got 0.0"),
        ({"warmup_steps": -1}, "optim.warmup_steps must not be negative, got -1"),
        ({"betas": (0.9, 1.0)}, "optim.betas must be at least 0 and below 1, got 1.0"),
        ({"max_grad_norm": 0.0}, "optim.max_grad_norm must be above 0, got 0.0"),
    ],
)
def test_numbers_that_cannot_work(options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        OptimConfig(**options).check()
    OptimConfig(max_grad_norm=None).check()


@pytest.mark.parametrize("name", ["log_every", "sample_every", "checkpoint_every", "keep_checkpoints"])
def test_intervals_are_of_one_step_at_least(name):
    with pytest.raises(ValueError, match=f"^run.{name} must be at least 1, got 0$"):
        RunConfig("run", **{name: 0}).check()
