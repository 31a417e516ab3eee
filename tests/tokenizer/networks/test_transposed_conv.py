"""The transposed convolution against torch's."""

import pytest
import torch
from torch import nn

from tokenizer.networks.transposed_conv import TransposedConv2d


def results(kind, dtype, autocast=False):
    """Output and gradients of one layer, whose weights are rounded to `dtype`."""
    torch.manual_seed(0)
    layer = kind(6, 4, 4, stride=2, padding=1)
    inputs = torch.randn(8, 6, 8, 8).to(torch.bfloat16).to(dtype).requires_grad_()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    layer.to(torch.float32 if autocast else dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(inputs)
    factors = torch.randn(output.shape).to(torch.bfloat16)
    output.backward(factors.to(output.dtype))
    return [output.detach(), inputs.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_the_bias_gradient_is_exact_up_to_rounding_and_all_else_is_torchs(autocast):
    exact = results(nn.ConvTranspose2d, torch.float64)
    dtype = torch.float32 if autocast else torch.bfloat16
    found, own = results(TransposedConv2d, dtype, autocast), results(nn.ConvTranspose2d, dtype, autocast)
    for value, same in zip(found, own, strict=True):
        assert value.dtype == same.dtype and value.stride() == same.stride()
    torch.testing.assert_close(found[3].double(), exact[3], rtol=2**-7, atol=0.05)
    assert all(torch.equal(value, same) for value, same in zip(found[:3], own[:3], strict=True))


def test_in_float32_every_bit_is_torchs():
    pairs = zip(results(TransposedConv2d, torch.float32), results(nn.ConvTranspose2d, torch.float32), strict=True)
    assert all(torch.equal(value, same) for value, same in pairs)


def test_a_frozen_bias_gets_no_gradient():
    layer = TransposedConv2d(2, 3, 4).to(torch.bfloat16)
    layer.bias.requires_grad_(False)
    layer(torch.ones(1, 2, 3, 3, dtype=torch.bfloat16)).sum().backward()
    assert layer.bias.grad is None and layer.weight.grad is not None
