import copy
import math

import pytest
import torch

from tokenizer.functional.noise import ImageNoise
from tokenizer.quantizers import cvq, make_quantizer
from tokenizer.quantizers.anchors import closest_tokens, sampled_tokens, similarities


def make(codes=7, dim=4, **options):
    return make_quantizer("cvq", codes, dim, {"init": "normal"} | options).double()


def batch(images=3, dim=4):
    return torch.randn(images, dim, 2, 3, dtype=torch.float64)


def tokens_of(latents):
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def row_of_noise(seed):
    """As an update without a seed makes it from its step."""
    return ImageNoise(1, torch.device("cpu"), torch.tensor(seed), -1)


def similarity(distance, a, b):
    return (a @ b / (a.norm() * b.norm()) if distance == "cosine" else -((a - b) ** 2).sum()).item()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("anchor", ["closest", "random"])
@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_updates_are_those_of_plain_loops(distance, anchor, decay):
    quantizer = make(distance=distance, anchor=anchor, decay=decay)
    frequencies = [0.0] * 7
    for step in range(5):
        latents, table = batch(), quantizer.codebook.detach().clone()
        tokens = tokens_of(latents)
        out = quantizer(latents)
        codes = [max(range(7), key=lambda k: similarity(distance, token, table[k])) for token in tokens]
        assert out.codes.flatten().tolist() == codes
        quantizer.after_update(latents, out.codes)
        order = row_of_noise(step).words(18)[0].argsort().tolist()
        for k in range(7):
            frequencies[k] = decay * frequencies[k] + (1 - decay) * codes.count(k) / 18
            weight = math.exp(-frequencies[k] * 7 * 10 / (1 - decay) - 1e-3)
            closest = max(range(18), key=lambda j: similarity(distance, table[k], tokens[j]))
            expected = (1 - weight) * table[k] + weight * tokens[closest if anchor == "closest" else order[k]]
            torch.testing.assert_close(quantizer.codebook[k].detach(), expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(quantizer.frequencies, torch.tensor(frequencies, dtype=torch.float64))
    assert quantizer.step == 5 and quantizer.codebook.requires_grad and quantizer.codebook.grad_fn is None


def test_a_code_in_use_stays_and_others_become_tokens():
    quantizer = make(codes=5, distance="l2", decay=0.9)
    with torch.no_grad():
        quantizer.codebook[1:] += 100
    table, latents = quantizer.codebook.detach().clone(), batch()
    quantizer.after_update(latents, quantizer(latents).codes)
    assert torch.equal(quantizer.codebook[0], table[0])
    distances = torch.cdist(quantizer.codebook.detach()[1:], tokens_of(latents)).amin(dim=1)
    assert (distances < 1e-2 * torch.cdist(table[1:], tokens_of(latents)).amin(dim=1)).all()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_probrandom_draws_by_the_softmax_of_similarities(distance):
    tokens, code = torch.randn(6, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    weights = torch.tensor([math.exp(similarity(distance, code[0], token)) for token in tokens])
    found = sampled_tokens(tokens, code.expand(20_000, 3), distance, row_of_noise(3))
    places = torch.cdist(found, tokens).argmin(dim=1)
    assert torch.equal(tokens[places], found)
    shares = torch.bincount(places, minlength=6) / 20_000
    torch.testing.assert_close(shares, (weights / weights.sum()).float(), rtol=0, atol=0.015)
    assert torch.equal(found, sampled_tokens(tokens, code.expand(20_000, 3), distance, row_of_noise(3)))
    assert not torch.equal(found, sampled_tokens(tokens, code.expand(20_000, 3), distance, row_of_noise(4)))


def test_the_anchor_probrandom_is_another_in_each_update():
    quantizer = make(anchor="probrandom")
    latents, tables = batch(), []
    for step in range(2):
        tables.append(sampled_tokens(tokens_of(latents), quantizer.codebook.detach(), "cosine", row_of_noise(step)))
        before = quantizer.codebook.detach().clone()
        quantizer.after_update(latents, quantizer(latents).codes)
        weights = torch.exp(-quantizer.frequencies * 7 * 10 / 0.01 - 1e-3)[:, None]
        torch.testing.assert_close(quantizer.codebook.detach(), before + weights * (tables[-1] - before))
    assert not torch.equal(*tables)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize(("codes", "images"), [(7, 3), (30, 3), (2, 1), (1, 1)])
def test_the_contrastive_loss_and_its_gradient(distance, codes, images, monkeypatch):
    quantizer = make(codes=codes, distance=distance, contrastive_weight=0.5)
    monkeypatch.setattr(cvq, "entries_of_tile", lambda tokens: 3 * len(tokens))  # three codes at a time
    latents = batch(images).requires_grad_()
    tokens, terms = tokens_of(latents).detach(), []
    table = quantizer.codebook.detach().clone().requires_grad_()
    for code in table:
        if distance == "cosine":
            scores = tokens @ code / (tokens.norm(dim=1) * code.norm())
        else:
            scores = -(tokens - code).square().sum(dim=1)
        scores = scores.sort().values / 0.07
        positive = scores[-max(1, len(tokens) // codes) :].mean()
        terms.append(torch.logsumexp(torch.cat([positive[None], scores[: len(tokens) // 2]]), 0) - positive)
    expected = sum(terms) / codes
    out = quantizer(latents)
    assert quantizer.loss_weights() == {"codebook": 1.0, "commitment": 0.25, "contrastive": 0.5}
    torch.testing.assert_close(out.losses["contrastive"], expected, rtol=1e-10, atol=1e-12)
    out.losses["contrastive"].backward()
    assert latents.grad is None
    torch.testing.assert_close(quantizer.codebook.grad, torch.autograd.grad(expected, table)[0], rtol=1e-8, atol=1e-10)


def test_similarities_are_the_definitions():
    tokens, table = tokens_of(batch()), torch.randn(3, 4, dtype=torch.float64)
    for distance in ("cosine", "l2"):
        expected = [[similarity(distance, code, token) for token in tokens] for code in table]
        torch.testing.assert_close(similarities(tokens, table, distance), torch.tensor(expected, dtype=torch.float64))


def test_of_equally_close_tokens_the_first_is_the_anchor():
    tokens = torch.tensor([[0.0, 1.0], [2.0, 0.0], [4.0, 0.0], [1.0, 0.0]])
    code = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert closest_tokens(tokens, code, "cosine").tolist() == [[2.0, 0.0]] * 2
    assert closest_tokens(tokens, code, "l2").tolist() == [[1.0, 0.0], [2.0, 0.0]]


def test_with_first_batch_only_the_first_update_moves_codes():
    quantizer = make(first_batch=True)
    latents = batch()
    tables = [quantizer.codebook.detach().clone()]
    for _ in range(3):
        quantizer.after_update(latents, quantizer(latents).codes)
        tables.append(quantizer.codebook.detach().clone())
    assert not torch.equal(tables[0], tables[1]) and torch.equal(tables[1], tables[2])
    assert torch.equal(tables[2], tables[3]) and quantizer.step == 3


@pytest.mark.parametrize("anchor", ["closest", "random", "probrandom"])
def test_a_saved_quantizer_goes_on_and_draws_from_nobody_elses_generator(anchor):
    quantizer, restored = (make(anchor=anchor, contrastive_weight=0.1) for _ in range(2))
    latents = batch()
    assert set(quantizer.state_dict()) == {"codebook", "frequencies", "step"}
    codes, state = quantizer(latents).codes, torch.get_rng_state()
    quantizer.after_update(latents, codes)
    assert torch.equal(torch.get_rng_state(), state)
    restored.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    latents = batch()
    for each in (quantizer, restored):
        each.after_update(latents, each(latents).codes)
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in restored.state_dict().items())


@pytest.mark.parametrize("anchor", ["closest", "random", "probrandom"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("latents", ["zero", "equal", "normal"])
def test_what_is_degenerate_stays_finite(anchor, distance, latents):
    for codes, dim in ((2, 1), (3000, 3)):
        options = {"anchor": anchor, "distance": distance, "contrastive_weight": 0.1}
        quantizer = make_quantizer("cvq", codes, dim, options)
        for images in (1, 2):
            values = {"zero": torch.zeros, "equal": torch.ones, "normal": torch.randn}[latents](images, dim, 1, 1)
            values.requires_grad_()
            out = quantizer(values)
            (out.quantized.sum() + sum(out.losses.values())).backward()
            assert values.grad.isfinite().all() and quantizer.codebook.grad.isfinite().all()
            quantizer.after_update(values, out.codes)
            assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def test_a_table_of_100_000_codes_is_no_matter_of_memory():
    quantizer = make_quantizer("cvq", 100_000, 2, {})
    latents = torch.randn(1, 2, 4, 4)
    quantizer.after_update(latents, quantizer(latents).codes)
    assert quantizer.codebook.isfinite().all()


def test_a_decay_of_1_is_refused():
    with pytest.raises(ValueError, match=r"decay must be at least 0 and below 1, got 1.0"):
        make(decay=1.0)
