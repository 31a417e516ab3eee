"""Finite scalar quantization, against its published listing value by value."""

import math
from itertools import product

import pytest
import torch

from tokenizer.quantizers import make_quantizer
from tokenizer.quantizers.fsq import spread_levels

LEVELS = (8, 5, 4, 3)
CODES, DIM = math.prod(LEVELS), len(LEVELS)


def make(levels=LEVELS, **options):
    return make_quantizer("fsq", math.prod(levels), len(levels), {"levels": levels, **options}).double()


def listed(value, levels):
    """The published bound and rounding of one value: what is rounded, and the value in [-1, 1] that it becomes."""
    half = (levels - 1) * (1 - 1e-3) / 2
    offset = 0.0 if levels % 2 else 0.5
    bounded = math.tanh(value + math.tan(offset / half)) * half - offset
    return bounded, round(bounded) / (levels // 2)


def test_each_value_is_rounded_as_published():
    latents = 2 * torch.randn(2, DIM, 3, 5, dtype=torch.float64)
    out = make()(latents)
    for image, channel, row, column in product(range(2), range(DIM), range(3), range(5)):
        _, expected = listed(latents[image, channel, row, column].item(), LEVELS[channel])
        assert out.quantized[image, channel, row, column].item() == pytest.approx(expected, abs=1e-12)


def test_the_gradient_is_that_of_the_bounded_value():
    latents = torch.randn(1, DIM, 2, 3, dtype=torch.float64).requires_grad_()
    make()(latents).quantized.sum().backward()
    for channel, levels in enumerate(LEVELS):
        for value, slope in zip(latents[0, channel].flatten(), latents.grad[0, channel].flatten(), strict=True):
            above, below = (listed(value.item() + step, levels)[0] for step in (1e-6, -1e-6))
            assert slope.item() == pytest.approx((above - below) / 2e-6 / (levels // 2), rel=1e-6)


def test_the_codes_are_all_products_of_the_levels_and_large_latents_reach_each():
    quantizer = make()
    table = quantizer.codebook
    values = [[(digit - levels // 2) / (levels // 2) for digit in range(levels)] for levels in LEVELS]
    rows = [list(reversed(digits)) for digits in product(*reversed(values))]  # the first channel is the lowest digit
    torch.testing.assert_close(table, torch.tensor(rows, dtype=torch.float64))
    # The middle of the values that round to a level.
    reach, offset, shift = (getattr(quantizer, name).flatten() for name in ("_reach", "_offset", "_shift"))
    inner = (table * (torch.tensor(LEVELS) // 2) + offset) / reach
    latents = (inner.clamp(-0.9999, 0.9999).atanh() - shift).T.reshape(1, DIM, CODES, 1)
    assert torch.equal(quantizer.encode(latents).flatten(), torch.arange(CODES))
    assert torch.equal(quantizer.lookup(torch.arange(CODES).view(1, -1, 1))[0, :, :, 0].T, table)


def test_ifsq_bounds_normal_latents_to_values_that_are_about_uniform():
    latents = torch.randn(1, 1, 1, 100_000, dtype=torch.float64)
    uniform = torch.linspace(-1, 1, 100_000, dtype=torch.float64)
    sorted_values = {
        bound: make((7,), bound=bound)._bounded(latents).flatten().sort().values / (3 * 0.999)
        for bound in ("tanh", "sigmoid")
    }
    furthest = {bound: (values - uniform).abs().max().item() for bound, values in sorted_values.items()}
    assert furthest["sigmoid"] < 0.04 < 0.08 < furthest["tanh"]
    expected = 2 / (1 + math.exp(-1.6 * 0.3)) - 1  # 2 sigmoid(1.6 z) - 1 at z = 0.3
    latents = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    assert make((7,), bound="sigmoid")._bounded(latents).item() == pytest.approx(expected * 3 * 0.999)


def test_two_levels_part_at_zero():
    latents = torch.tensor([-0.1, 0.1], dtype=torch.float64).view(1, 1, 1, 2)
    assert make((2,)).encode(latents).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("codes", "channels", "expected"),
    [(512, 3, [8, 8, 8]), (1000, 4, [8, 5, 5, 5]), (12, 6, [3, 2, 2, 1, 1, 1]), (7, 2, [7, 1]), (1, 1, [1])],
)
def test_the_levels_of_any_k_and_d(codes, channels, expected):
    levels = spread_levels(codes, channels)
    assert math.prod(levels) == codes and sorted(levels) == sorted(expected)


def test_levels_of_another_product_or_number_are_refused():
    for levels, numbers in (((5, 5, 5), "3 channels and 125 codes"), ((8, 8, 4, 2, 1), "5 channels and 512 codes")):
        with pytest.raises(ValueError, match=numbers):
            make_quantizer("fsq", 512, 3, {"levels": levels})
