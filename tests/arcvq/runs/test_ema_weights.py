import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from arcvq.runs import ema
from arcvq.runs.ema import Average


def test_the_average_is_that_of_diffusers():
    module = nn.Linear(3, 2).double()
    ours, theirs = Average(module, 0.6), EMAModel(module.parameters(), decay=0.6)
    for step in range(30):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        if step == 10:  # taken up again
            state, resumed = ours.state(), Average(module, 0.6)
            resumed.load_state(state, step)
            ours = resumed
        ours.begin_step()
        ours.update(torch.tensor(True))
        theirs.step(module.parameters())
        for found, expected in zip(ours.tensors, theirs.shadow_params, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_step_without_an_update_leaves_it_as_it_is():
    module = nn.Linear(3, 2)
    average = Average(module, 0.6)
    average.begin_step()
    average.update(torch.tensor(True))
    average.begin_step()
    before = [tensor.clone() for tensor in average.tensors]
    with torch.no_grad():
        module.weight.fill_(7)
    average.update(torch.tensor(False))
    assert all(map(torch.equal, average.tensors, before))
    average.begin_step()
    average.update(torch.tensor(True))
    assert not torch.equal(average.tensors[0], before[0])


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.5, 1.0])
def test_many_tensors_at_once_move_as_each_by_itself(share):
    """On a GPU."""
    sizes = [(3, 2), (1,), (2, 5)]
    averages, parameters = ([torch.randn(size) for size in sizes] for _ in range(2))
    expected = [average.lerp(parameter, share) for average, parameter in zip(averages, parameters, strict=True)]
    ema._interpolate_together(averages, parameters, torch.tensor(share))
    tolerance = 1e-6 if share else 0.0
    for found, value in zip(averages, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=tolerance, atol=tolerance)


def test_many_tensors_at_once_stay_where_they_have_arrived():
    parameters = [torch.randn(1000), torch.randn(3, 2)]
    averages = [parameter.clone() for parameter in parameters]
    for _ in range(1000):
        ema._interpolate_together(averages, parameters, torch.tensor(1e-4))
    assert all(map(torch.equal, averages, parameters))
