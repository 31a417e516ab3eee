"""Compiled blocks and group norms in half precision give what the module gives."""

import pytest
import torch
from fake_cuda import FakeCuda
from torch import nn

from arcvq.runs.faster_modules import compile_in_place, keep_norms_in_input_precision
from priors import PixelCNN


def norms():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.GroupNorm(4, 8, affine=False))
    nn.init.normal_(module[1].weight)
    return module


def test_norms_in_bfloat16_are_those_in_float32_rounded():
    hidden = torch.randn(2, 8, 5, 5).bfloat16()
    expected = norms()[1](hidden.float())
    module = norms()
    keep_norms_in_input_precision(module)
    found = module[1](hidden)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    assert torch.equal(module[1](hidden.float()), expected)


@pytest.mark.parametrize(("kept", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_of_cuda_leaves_them_in_half_precision(kept, dtype):
    with FakeCuda(), torch.device("cuda:0"):
        module = norms()
        if kept:
            keep_norms_in_input_precision(module)
        with torch.autocast("cuda", torch.bfloat16):
            assert module(torch.randn(2, 3, 7, 7)).dtype == dtype


def test_the_state_is_that_of_the_module():
    module = norms()
    names = list(module.state_dict())
    keep_norms_in_input_precision(module)
    assert list(module.state_dict()) == names


@pytest.mark.slow
def test_blocks_are_compiled_once_for_each_shape():
    """The three layers of a kind are one compilation, and the outputs stay."""
    torch.manual_seed(0)
    prior = PixelCNN(12, 3, (4, 4), channels=8, num_layers=6, head_channels=16, label_dropout=0.0).eval()
    codes, labels = torch.randint(12, (2, 4, 4)), torch.tensor([0, 2])
    expected = prior(codes, labels)
    compile_in_place(prior)
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(prior(codes, labels), expected)
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] < len(prior.layers)
