"""Scalars by name in one vector: as a dictionary of scalars, whatever names a step has."""

import pytest
import torch

from arcvq.runs.named_scalars import NamedScalars, Terms

# The names of steps: a discriminator enters, its penalty comes and goes, a micro-batch has fewer than the last one.
STEPS = ("ab", "ab", "abc", "c", "ba", "abcd", "d", "ab")


def added(sums, number, names):
    sums.of(names).add_(torch.tensor([float(number + ord(name)) / 7 for name in names]))


def test_sums_are_those_of_a_dictionary():
    sums, expected = NamedScalars(torch.float32, torch.device("cpu")), {}
    for number, names in enumerate(STEPS):
        added(sums, number, names)
        for name in names:
            before = expected.get(name, torch.tensor(0.0))
            expected[name] = before + torch.tensor(float(number + ord(name)) / 7)
    assert sums.by_name() == expected


@pytest.mark.parametrize("stop", range(len(STEPS)))
def test_a_resumed_state_goes_on_bit_for_bit(stop):
    whole, parts = (NamedScalars(torch.float32, torch.device("cpu")) for _ in range(2))
    for number, names in enumerate(STEPS):
        added(whole, number, names)
        added(parts, number, names)
        if number == stop:
            saved = parts.by_name()
            parts = NamedScalars(torch.float32, torch.device("cpu"))
            parts.load(saved)
    assert parts.by_name() == whole.by_name()


def test_a_saved_state_does_not_change_with_the_next_step():
    sums = NamedScalars(torch.float32, torch.device("cpu"))
    added(sums, 0, "ab")
    saved = sums.by_name()
    before = {name: value.clone() for name, value in saved.items()}
    added(sums, 1, "ab")
    assert saved == before != sums.by_name()


def test_finite_is_isfinite():
    values = {
        name: torch.tensor(value) for name, value in zip("abcde", (1.0, torch.nan, -torch.inf, 3e38, 0.0), strict=True)
    }
    terms = Terms.stack(values)
    assert torch.equal(terms.finite, terms.values.isfinite())
