"""What is known of skipped steps, over a stop in the middle of a row of them."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from arcvq.runs.named_scalars import Terms
from arcvq.runs.skipped_steps import SkippedSteps


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def step(skipped, number, **terms):
    """One step, whose update is made where all terms are finite."""
    values = {name: torch.tensor(value) for name, value in terms.items()}
    skipped.count([torch.stack(list(values.values())).isfinite().all()])
    skipped.observe(Terms.stack(values), completed=True)
    skipped.sync(False, number)


def test_a_stop_within_a_row_does_not_forget_which_term_went_first(accelerator):
    nan = float("nan")
    skipped = SkippedSteps(accelerator)
    step(skipped, 1, loss=nan, arc=nan, codebook=1.0)
    step(skipped, 2, loss=1.0, arc=1.0, codebook=1.0)
    step(skipped, 3, loss=nan, arc=1.0, codebook=nan)
    assert skipped.warning() == "step 3 is skipped: codebook is not finite"
    step(skipped, 4, loss=nan, arc=nan, codebook=nan)
    counts, state = skipped.counts, skipped.state()
    resumed = SkippedSteps(accelerator, counts["skipped_steps"], counts["skipped_in_row"])
    resumed.load_state(state)
    step(resumed, 5, loss=nan, arc=nan, codebook=nan)
    assert resumed.warning() is None and resumed.counts == {"skipped_steps": 4, "skipped_in_row": 3}
    assert resumed.too_many(4) is None
    assert resumed.too_many(3).startswith("3 steps in a row were skipped, from step 3 on, in which codebook is not")
