"""A training step on a GPU: the host never waits in it, and launches no more kernels than the table allows."""

import json

import pytest
import torch
from fake_training import as_table, training_step
from places import ROOT
from quantizer_cases import NAMES

from arcvq.runs.skipped_steps import SkippedSteps

# By what is trained: the command, and the kernels of one step.
TABLE = json.loads((ROOT / "tests" / "golden" / "launches.json").read_text())
# A step takes more than some seconds here: it has thousands of kernels.
SLOW = ("vqgan", "ldm of", "262,144", "2 parts", "pixelcnn")


def marks(name):
    return [pytest.mark.slow] if any(word in name for word in SLOW) else []


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in TABLE])
def test_a_step_waits_for_nothing_and_launches_no_more_than_the_table_says(name):
    launches = training_step(*TABLE[name]["command"].split())
    assert sum(launches.values()) <= TABLE[name]["launches"], as_table(launches)


def test_the_table_has_every_quantizer_within_the_bounds():
    assert set(NAMES) <= set(TABLE)
    assert TABLE["arc"]["launches"] <= 450
    assert TABLE["arc, 262,144 codes of 8 values"]["launches"] <= 10_000


def test_a_wait_in_a_step_is_an_error(monkeypatch):
    count = SkippedSteps.count

    def reads(self, updates):
        assert updates[0].item() in (True, False)
        count(self, updates)

    monkeypatch.setattr(SkippedSteps, "count", reads)
    with pytest.raises(AssertionError, match="reads from the device"):
        training_step(*TABLE["vq"]["command"].split())


def test_a_constant_copied_in_a_step_is_an_error(monkeypatch):
    count = SkippedSteps.count

    def copies(self, updates):
        count(self, [updates[0] & torch.tensor(True, device=updates[0].device)])

    monkeypatch.setattr(SkippedSteps, "count", copies)
    with pytest.raises(AssertionError, match="copies to the device"):
        training_step(*TABLE["vq"]["command"].split())
