import torch
from diffusers.training_utils import EMAModel
from torch import nn

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
        ours.update(torch.tensor(True))
        theirs.step(module.parameters())
        for found, expected in zip(ours.tensors, theirs.shadow_params, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_step_without_an_update_leaves_it_as_it_is():
    module = nn.Linear(3, 2)
    average = Average(module, 0.6)
    average.update(torch.tensor(True))
    before = [tensor.clone() for tensor in average.tensors]
    with torch.no_grad():
        module.weight.fill_(7)
    average.update(torch.tensor(False))
    assert all(map(torch.equal, average.tensors, before))
    average.update(torch.tensor(True))
    assert not torch.equal(average.tensors[0], before[0])
