"""Entropies of soft assignments to signs, against softmax over all of them."""

import math
from itertools import product

import pytest
import torch

from tokenizer.functional.sign_entropy import entropies, mean_distributions, sign_logits, token_entropies

SIZE, TEMPERATURE = 0.6, 0.8


def logits_of(tokens):
    return sign_logits(tokens, SIZE, TEMPERATURE)


def assignments(tokens):
    """softmax over all c of {-s, s}^D of -|z - c|^2 / T, (N, 2^D); the first channel is the lowest bit."""
    signs = [list(reversed(signs)) for signs in product((-SIZE, SIZE), repeat=tokens.shape[1])]
    codes = torch.tensor(signs, dtype=tokens.dtype)
    return (-(tokens[:, None] - codes).square().sum(dim=2) / TEMPERATURE).softmax(dim=1)


def by_definition(p):
    return -(p * p.log()).sum(dim=-1)


def test_the_entropy_of_each_token_is_that_over_all_codes():
    tokens = torch.randn(20, 6, dtype=torch.float64)
    torch.testing.assert_close(
        token_entropies(logits_of(tokens)), by_definition(assignments(tokens)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("dim", [1, 2, 5, 6])
def test_the_mean_of_one_group_is_the_mean_over_all_codes_in_their_order(dim):
    tokens = torch.randn(20, dim, dtype=torch.float64)
    found = mean_distributions(logits_of(tokens), 18)
    torch.testing.assert_close(found, assignments(tokens).mean(dim=0, keepdim=True), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("dim", "channels", "groups"), [(6, 3, [3, 3]), (7, 3, [3, 3, 1]), (5, 4, [3, 2]), (3, 1, [1, 1, 1])]
)
def test_the_mean_of_several_groups_is_that_of_each_alone(dim, channels, groups):
    tokens = torch.randn(20, dim, dtype=torch.float64)
    found = entropies(mean_distributions(logits_of(tokens), channels))
    alone = [by_definition(assignments(part).mean(dim=0)) for part in tokens.split(groups, dim=1)]
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-12, atol=0)
    assert found.sum() > by_definition(assignments(tokens).mean(dim=0)) + 1e-3  # an upper bound


def test_the_gradients_are_those_of_the_definition():
    tokens = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    logits, all_codes = logits_of(tokens), assignments(tokens)
    pairs = [
        (token_entropies(logits).mean(), by_definition(all_codes).mean()),
        (entropies(mean_distributions(logits, 5)).sum(), by_definition(all_codes.mean(dim=0))),
    ]
    for found, expected in pairs:
        gradients = [torch.autograd.grad(value, tokens, retain_graph=True)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6])
def test_decided_and_undecided_signs_have_finite_entropies_and_gradients(scale):
    tokens = (torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]) * scale).requires_grad_()
    of_tokens, of_mean = token_entropies(logits_of(tokens)), entropies(mean_distributions(logits_of(tokens), 2))
    expected = (3, 3) if scale < 1 else (0, 1)  # in units of log 2
    assert of_tokens.mean().item() == pytest.approx(expected[0] * math.log(2), abs=1e-6)
    assert of_mean.sum().item() == pytest.approx(expected[1] * math.log(2), abs=1e-6)
    (of_tokens.sum() + of_mean.sum()).backward()
    assert tokens.grad.isfinite().all()


def test_no_table_of_all_tokens_and_codes_is_kept():
    """Expect 2^9 entries per token for either half of the channels of 2^18 codes."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    logits = torch.randn(40, 18, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        entropies(mean_distributions(logits, 18)).sum().backward()
    assert max(kept) == 2**18 and sorted(set(kept))[-2] <= 40 * 2**9
