"""Quantizers whose table follows moving averages: `ema`, and `rq` with several codes for each token."""

import copy

import pytest
import torch
from quantizer_cases import check_goes_on_as_saved

from tokenizer.functional.noise import ImageNoise
from tokenizer.quantizers import make_quantizer

DEPTHS = {"ema": 1, "rq": 3}


def make(name, codes=7, dim=4, **options):
    options = ({"code_depth": DEPTHS["rq"], "revive_below": 0.0} if name == "rq" else {}) | options
    return make_quantizer(name, codes, dim, options).double()


def batch(images=3, dim=4):
    return torch.randn(images, dim, 2, 3, dtype=torch.float64)


def tokens_of(latents):
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def assignments(table, tokens, depth):
    """By plain loops: the codes of each token, and the vectors they were found for, token by token."""
    codes, vectors = [], []
    for token in tokens:
        left = token.clone()
        for _ in range(depth):
            codes.append(min(range(len(table)), key=lambda k: ((left - table[k]) ** 2).sum().item()))
            vectors.append(left)
            left = left - table[codes[-1]]
    return codes, vectors


def noise_of_step(step):
    return ImageNoise(1, torch.device("cpu"), torch.tensor(step), -1)  # without a seed it comes from the step


def updated(table, sizes, sums, vectors, codes, noise, decay=0.99, revive_below=0.0):
    """By plain loops: the table and its statistics after an update."""
    sizes, sums = sizes.clone(), sums.clone()
    for k in range(len(table)):
        mine = [vector for vector, code in zip(vectors, codes, strict=True) if code == k]
        sizes[k] = decay * sizes[k] + (1 - decay) * len(mine)
        sums[k] = decay * sums[k] + (1 - decay) * sum(mine, start=torch.zeros_like(sums[k]))
    dead = [k for k in range(len(table)) if sizes[k] < revive_below]
    order = noise.words(len(vectors))[0].argsort().tolist() if revive_below else []
    for place, k in enumerate(dead):
        sizes[k] = max(1.0, revive_below)
        sums[k] = sizes[k] * vectors[order[place % len(order)]]
    total, new = sizes.sum(), torch.empty_like(table)
    for k in range(len(table)):
        new[k] = sums[k] / ((sizes[k] + 1e-5) / (total + len(table) * 1e-5) * total)
    return new, sizes, sums, dead


@pytest.fixture(params=["ema", "rq"])
def name(request):
    return request.param


@pytest.mark.parametrize(("decay", "revive_below"), [(0.99, 0.0), (0.8, 1.0), (0.5, 3.0)])
def test_updates_are_those_of_plain_loops(name, decay, revive_below):
    quantizer = make(name, decay=decay, revive_below=revive_below)
    assert torch.equal(quantizer.cluster_sums, quantizer.codebook) and (quantizer.cluster_sizes == 1).all()
    state = (quantizer.codebook.clone(), torch.ones(7, dtype=torch.float64), quantizer.codebook.clone())
    revived = 0
    for step in range(6):
        latents = batch()
        out = quantizer(latents)
        codes, vectors = assignments(state[0], tokens_of(latents), DEPTHS[name])
        assert out.codes.flatten().tolist() == codes
        assert out.counts.tolist() == [codes.count(k) for k in range(7)]
        quantizer.after_update(latents, out.codes)
        *state, dead = updated(*state, vectors, codes, noise_of_step(step), decay, revive_below)
        revived += len(dead)
        found = (quantizer.codebook, quantizer.cluster_sizes, quantizer.cluster_sums)
        for value, expected in zip(found, state, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)
    assert quantizer.step == 6 and (revived > 0) == (revive_below > 0)


def test_the_loss_is_the_mean_commitment_to_the_partial_sums(name):
    quantizer = make(name)
    latents = batch().requires_grad_()
    out = quantizer(latents)
    tokens = tokens_of(latents)
    codes = out.codes.reshape(len(tokens), -1)
    errors = []
    for depth in range(DEPTHS[name]):
        partial = torch.stack([quantizer.codebook[row[: depth + 1]].sum(dim=0) for row in codes])
        errors.append((tokens - partial).square().mean())
    expected = sum(errors) / len(errors)
    assert set(out.losses) == set(quantizer.loss_weights()) == {"commitment"}
    assert quantizer.loss_weights() == {"commitment": 0.25} and not list(quantizer.parameters())
    torch.testing.assert_close(out.losses["commitment"], expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(out.losses["commitment"], latents)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, latents)[0], rtol=1e-10, atol=1e-14)


def test_the_decoder_takes_the_sum_of_the_rows_straight_through(name):
    quantizer = make(name)
    latents = batch().requires_grad_()
    out = quantizer(latents)
    assert out.codes.shape == ((3, 2, 3) if name == "ema" else (3, 2, 3, 3))
    rows = [quantizer.codebook[row].sum(dim=0) for row in out.codes.reshape(18, -1)]
    torch.testing.assert_close(tokens_of(out.quantized), torch.stack(rows))
    weight = torch.randn_like(out.quantized)
    assert torch.equal(torch.autograd.grad((out.quantized * weight).sum(), latents, retain_graph=True)[0], weight)
    assert torch.equal(quantizer.encode(latents), out.codes)
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)
    snapped = quantizer.quantize_latents(latents)
    assert torch.equal(snapped, out.quantized)
    assert torch.equal(torch.autograd.grad((snapped * weight).sum(), latents)[0], weight)


def test_a_next_code_comes_closer():
    latents = batch(images=20)
    errors = []
    for depth in (1, 2, 4):
        quantizer = make_quantizer("rq", 64, 4, {"code_depth": depth, "revive_below": 0.0, "init": "normal"})
        for _ in range(40):
            quantizer.after_update(latents, quantizer(latents).codes)
        errors.append((quantizer.eval()(latents).quantized - latents).square().mean().item())
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_rq_of_one_code_is_ema():
    torch.manual_seed(0)
    ema = make("ema", revive_below=1.0)
    rq = make("rq", code_depth=1, revive_below=1.0)
    rq.load_state_dict(ema.state_dict())
    for _ in range(3):
        latents = batch()
        a, b = ema(latents), rq(latents)
        assert torch.equal(a.codes, b.codes) and torch.equal(a.quantized, b.quantized)
        torch.testing.assert_close(a.losses, b.losses)
        ema.after_update(latents, a.codes)
        rq.after_update(latents, b.codes)
    torch.testing.assert_close(ema.state_dict(), rq.state_dict())


def test_a_code_that_is_never_hit_stays_and_then_goes_to_the_origin():
    quantizer = make("ema", codes=2, dim=1, decay=0.9)
    for value in (quantizer.codebook, quantizer.cluster_sums):
        value.copy_(torch.tensor([[0.0], [10.0]]))
    latents = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    for _ in range(30):
        quantizer.after_update(latents, quantizer(latents).codes)
    assert quantizer.codebook[1].item() == pytest.approx(10, rel=1e-3)
    quantizer.float()
    for _ in range(1500):
        quantizer.after_update(latents, torch.zeros(1, 2, 2, dtype=torch.int64))
    assert quantizer.codebook.isfinite().all() and abs(quantizer.codebook[1].item()) < 1e-3


def test_revived_codes_are_tokens_of_the_batch_each_once_while_they_last():
    quantizer = make("ema", codes=30, revive_below=1.0)
    latents = batch()  # 18 tokens
    quantizer.codebook[1:] += 100  # so that all are assigned to one
    quantizer.after_update(latents, quantizer(latents).codes)
    distances = torch.cdist(quantizer.codebook[1:], tokens_of(latents))
    assert distances.amin(dim=1).max() < 1e-4
    assert sorted(torch.bincount(distances.argmin(dim=1), minlength=18).tolist()) == [1] * 7 + [2] * 11


def test_a_revival_draws_from_nobody_elses_generator(name):
    quantizer = make(name, revive_below=2.0)
    before, latents = copy.deepcopy(quantizer.state_dict()), batch()
    assert set(before) == {"codebook", "cluster_sizes", "cluster_sums", "step"}
    codes, state = quantizer(latents).codes, torch.get_rng_state()
    quantizer.after_update(latents, codes)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(quantizer.codebook, before["codebook"])


def test_a_saved_quantizer_goes_on_as_it_would_have(name):
    check_goes_on_as_saved(make(name, revive_below=2.0), make(name, revive_below=2.0), [batch() for _ in range(4)])


@pytest.mark.parametrize(("codes", "dim", "images"), [(2, 1, 1), (100_000, 3, 2)])
@pytest.mark.parametrize("latents", ["zero", "equal", "normal"])
def test_what_is_degenerate_stays_finite(name, codes, dim, images, latents):
    quantizer = make_quantizer(name, codes, dim, {"revive_below": 1.0})
    for _ in range(2 if codes == 2 else 1):
        values = {"zero": torch.zeros, "equal": torch.ones, "normal": torch.randn}[latents](images, dim, 1, 1)
        values.requires_grad_()
        out = quantizer(values)
        (out.quantized.sum() + out.losses["commitment"]).backward()
        assert values.grad.isfinite().all() and out.losses["commitment"].isfinite()
        quantizer.after_update(values, out.codes)
        assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@pytest.mark.parametrize("revive_below", [0.0, 1.0])
def test_updates_per_depth_are_one_update_for_the_residuals_of_each_depth(revive_below):
    rq = make("rq", codes=11, updates="per_depth", revive_below=revive_below, init="normal")
    latents, noise = batch(), noise_of_step(0)
    codes, vectors = assignments(rq.codebook, tokens_of(latents), 3)
    expected = rq.codebook, rq.cluster_sizes, rq.cluster_sums
    for depth in range(3):
        of_depth = vectors[depth::3], codes[depth::3]
        expected = updated(*expected, *of_depth, noise, revive_below=revive_below)[:3]
    rq.after_update(latents, rq(latents).codes)
    torch.testing.assert_close((rq.codebook, rq.cluster_sizes, rq.cluster_sums), expected)


def test_with_updates_per_depth_a_code_can_be_replaced_in_each():
    make("rq", codes=10**6, updates="per_depth", revive_below=1.0).check_batch(4, 2)


def test_a_batch_must_be_able_to_hit_each_code_often_enough():
    make("rq", codes=24, revive_below=1.0).check_batch(4, 2)  # 4 tokens x 2 processes x 3 codes
    with pytest.raises(ValueError, match=r"a batch of 24 codes cannot .* 25 codes revive_below 1.0 times.*batch_size"):
        make("rq", codes=25, revive_below=1.0).check_batch(4, 2)
    make("rq", codes=10**6).check_batch(1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1.0"),
        ({"decay": -0.1}, "decay"),
        ({"revive_below": -1.0}, "revive_below must be finite and not negative, got -1.0"),
        ({"revive_below": float("inf")}, "revive_below"),
        ({"code_depth": 0}, "code_depth must be at least 1, got 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make("rq", **options)
