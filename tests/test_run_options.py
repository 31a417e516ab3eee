"""The learning rate's schedules, by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from run_options import OptimConfig


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
