import math

import pytest
import torch
from quantizer_cases import check_gradients_of_what_is_decoded
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from tokenizer.quantizers import make_quantizer
from tokenizer.quantizers.vaevq import consistency


def make(codes=12, dim=3, **options):
    return make_quantizer("vaevq", codes, dim, options).double()


def make_encoder_output(dim=3, batch=2, scale=1.0):
    return (torch.randn(batch, 2 * dim, 4, 5, dtype=torch.float64) * scale).requires_grad_()


def gradients(value, quantizer, encoder_output):
    inputs = [encoder_output, quantizer.projector.weight, quantizer.projector.bias]
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def written_out(quantizer, encoder_output):
    """mu, sigma, rows and codes, (N, D) and (N,), token by token."""
    table = quantizer.table @ quantizer.projector.weight.T + quantizer.projector.bias
    mu, log_variance = encoder_output.permute(0, 2, 3, 1).reshape(-1, encoder_output.shape[1]).chunk(2, dim=1)
    sigma = log_variance.clamp(-30, 20).exp().sqrt()
    codes = torch.stack([(table.detach() - z).square().sum(dim=1).argmin() for z in mu.detach()])
    return mu, sigma, torch.stack([table[code] for code in codes]), codes


def test_codes_are_those_of_the_nearest_rows_to_the_means():
    quantizer, encoder_output = make(), make_encoder_output()
    out = quantizer(encoder_output)
    *_, codes = written_out(quantizer, encoder_output)
    assert torch.equal(out.codes.flatten(), codes) and out.codes.shape == (2, 4, 5)
    assert torch.equal(out.counts, torch.bincount(codes, minlength=12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_training_the_value_is_the_row_exactly(dtype):
    quantizer, encoder_output = make(dim=6).to(dtype), make_encoder_output(dim=6, scale=3).to(dtype)
    out = quantizer(encoder_output)
    assert torch.equal(out.quantized, quantizer.lookup(out.codes))


def test_the_gradients_of_what_is_decoded_equal_the_definition():
    quantizer, encoder_output = make(), make_encoder_output()
    out = quantizer(encoder_output)
    mu, sigma, rows, _ = written_out(quantizer, encoder_output)
    check_gradients_of_what_is_decoded(out, mu, sigma, rows, lambda value: gradients(value, quantizer, encoder_output))


def test_the_losses_and_their_gradients_equal_the_definitions():
    quantizer, encoder_output = make(), make_encoder_output()
    out = quantizer(encoder_output)
    mu, sigma, rows, _ = written_out(quantizer, encoder_output)
    table = quantizer.table @ quantizer.projector.weight.T + quantizer.projector.bias
    mean = table.mean(dim=0)
    covariance = sum(torch.outer(row - mean, row - mean) for row in table) / 11
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors @ values.sqrt().diag() @ vectors.T
    expected = {
        "coherence": sum(((q - m) / s).square().sum() for q, m, s in zip(rows, mu, sigma, strict=True)) / (2 * 40 * 3),
        "kl": kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).sum() / 2,
        "consistency": mean @ mean + covariance.trace() + 3 - 2 * root.trace(),
    }
    assert set(out.losses) == set(expected) == set(quantizer.loss_weights())
    for name, value in expected.items():
        assert out.losses[name].item() == pytest.approx(value.item(), rel=1e-9), name
        for ours, theirs in zip(
            gradients(out.losses[name], quantizer, encoder_output),
            gradients(value, quantizer, encoder_output),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11, msg=name)


def test_what_each_loss_trains():
    quantizer, encoder_output = make(), make_encoder_output()
    losses = quantizer(encoder_output).losses
    for name, trains in {"coherence": (1, 1, 1), "kl": (1, 1, 0), "consistency": (0, 0, 1)}.items():
        to_encoder_output, to_weight, _ = gradients(losses[name], quantizer, encoder_output)
        to_mean, to_log_variance = to_encoder_output.chunk(2, dim=1)
        assert [bool(gradient.any()) for gradient in (to_mean, to_log_variance, to_weight)] == [bool(t) for t in trains]
    assert not quantizer.table.requires_grad and quantizer.codebook.requires_grad


def test_the_sample_is_normal_around_the_mean_with_its_own_gradient():
    quantizer = make(dim=2)
    encoder_output = torch.tensor([1.0, -2.0, math.log(4), math.log(0.25)], dtype=torch.float64)
    encoder_output = encoder_output.reshape(1, 4, 1, 1).expand(1, 4, 100, 100).clone().requires_grad_()
    sampled = quantizer(encoder_output).sampled
    for channel, (mean, deviation) in enumerate(((1.0, 2.0), (-2.0, 0.5))):
        assert sampled[0, channel].mean().item() == pytest.approx(mean, abs=0.05 * deviation)
        assert sampled[0, channel].std().item() == pytest.approx(deviation, rel=0.03)
    (to_encoder_output,) = torch.autograd.grad(sampled.sum(), encoder_output)
    noise = (sampled - encoder_output[:, :2]) / torch.tensor([2.0, 0.5]).reshape(1, 2, 1, 1)
    assert (to_encoder_output[:, :2] == 1).all()
    torch.testing.assert_close(to_encoder_output[:, 2:], noise * torch.tensor([1.0, 0.25]).reshape(1, 2, 1, 1))


def test_any_split_of_the_batch_draws_alike():
    quantizer, encoder_output = make(), make_encoder_output(batch=5)
    quantizer.seed_noise(3, 10)
    whole = quantizer(encoder_output).sampled
    parts = []
    for first, last in ((0, 2), (2, 5)):
        quantizer.seed_noise(3, 10 + first)
        parts.append(quantizer(encoder_output[first:last]).sampled)
    assert torch.equal(torch.cat(parts), whole)


def test_evaluation_draws_nothing_and_agrees_with_encode_and_lookup():
    quantizer, encoder_output = make().eval(), make_encoder_output()
    state = torch.get_rng_state()
    out = quantizer(encoder_output)
    assert torch.equal(torch.get_rng_state(), state) and out.sampled is None
    latents = quantizer.latents(encoder_output)
    assert (
        torch.equal(latents, encoder_output[:, :3])
        and quantizer.latent_channels == 3
        and quantizer.encoder_channels == 6
    )
    assert torch.equal(out.codes, quantizer.encode(latents))
    assert torch.equal(out.quantized, quantizer.lookup(out.codes)) and torch.equal(
        out.quantized, quantizer.quantize_latents(latents)
    )


@pytest.mark.parametrize(
    ("options", "trains"),
    [({}, False), ({"objective": "released"}, True), ({"objective": "released", "train_table": False}, False)],
)
def test_the_table_learns_as_in_the_public_code(options, trains):
    quantizer, encoder_output = make(**options), make_encoder_output()
    assert quantizer.table.requires_grad == trains
    if trains:
        mu, sigma, rows, codes = written_out(quantizer, encoder_output)
        wanted = torch.autograd.grad(((rows - mu) / sigma).square().mean() / 2, quantizer.table)[0]
        found = torch.autograd.grad(quantizer(encoder_output).losses["coherence"], quantizer.table)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        assert (found.norm(dim=1) > 0).nonzero().flatten().tolist() == codes.unique().tolist()


def test_the_released_objective_is_coherence_alone():
    quantizer, encoder_output = make(objective="released"), make_encoder_output()
    assert set(quantizer(encoder_output).losses) == set(quantizer.loss_weights()) == {"coherence"}
    weights = make(kl_weight=0.5, consistency_weight=2).loss_weights()
    assert weights == {"coherence": 1, "kl": 0.5, "consistency": 2}
    assert make().loss_weights() == {"coherence": 1, "kl": 1e-6, "consistency": 1e-6}


def test_the_table_has_rows_of_length_1_and_is_saved():
    quantizer = make(codes=4000, dim=16)
    assert quantizer.table.square().sum(dim=1).mean().item() == pytest.approx(1, abs=0.02)
    assert set(quantizer.state_dict()) == {"table", "projector.weight", "projector.bias", "step"}
    restored = make(codes=4000, dim=16)
    restored.load_state_dict(quantizer.state_dict())
    assert torch.equal(restored.codebook, quantizer.codebook)


def test_consistency_is_0_for_standard_rows_and_falls_towards_them():
    rows = torch.randn(20, 4, dtype=torch.float64)
    centred = rows - rows.mean(dim=0)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(centred.T @ centred / 19), centred.T, upper=False).T
    assert consistency(whitened).item() == pytest.approx(0, abs=1e-9)
    # |shift|^2 + D (scale - 1)^2
    assert consistency(whitened * 3 + 2).item() == pytest.approx(4 * 4 + 4 * 2**2, rel=1e-9)
    assert consistency(whitened * 1.1) < consistency(whitened * 1.2)
    for wrong in (float("nan"), float("inf"), 1e300):  # of a training that diverges: a loss like others, not an error
        assert not consistency(torch.where(torch.arange(len(whitened))[:, None] == 0, wrong, whitened)).isfinite()


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_fewer_rows_than_dimensions_have_finite_gradients(rows):
    table = torch.randn(rows, 6, requires_grad=True)
    value = consistency(table)
    value.backward()
    values = torch.linalg.eigvalsh(torch.cov(table.detach().double().T)).clamp(min=1e-6)
    mean = table.detach().double().mean(dim=0)
    expected = mean @ mean + torch.cov(table.detach().double().T).trace() + 6 - 2 * values.sqrt().sum()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5) and table.grad.isfinite().all()


def test_a_single_code_is_refused_by_the_paper_s_objective():
    with pytest.raises(ValueError, match=r"got 1 code; raise model.codebook_size to 2 or more, or set .* released"):
        make(codes=1)
    assert make(codes=1, objective="released")(make_encoder_output()).losses["coherence"].isfinite()


@pytest.mark.parametrize("objective", ["paper", "released"])
@pytest.mark.parametrize(
    "case", ["one token", "equal", "zero", "tiny sigma", "huge sigma", "beyond the range", "D 1", "K 2"]
)
def test_nothing_becomes_nan(case, objective):
    dim = 1 if case == "D 1" else 3
    quantizer = make(2 if case == "K 2" else 12, dim, objective=objective).float()
    encoder_output = torch.randn(2, 2 * dim, 4, 4)
    if case == "one token":
        encoder_output = encoder_output[:1, :, :1, :1].clone()
    elif case == "equal":
        encoder_output[:] = encoder_output[:1, :, :1, :1]
    elif case == "zero":
        encoder_output.zero_()
    elif case == "tiny sigma":
        encoder_output[:, :dim] *= 1e6
        encoder_output[:, dim:] = -30
    elif case == "huge sigma":
        encoder_output[:, dim:] = 20
    elif case == "beyond the range":
        encoder_output[:, dim:] *= 1e6
    encoder_output.requires_grad_()
    out = quantizer(encoder_output)
    weights = quantizer.loss_weights()
    loss = sum(weights[name] * value for name, value in out.losses.items())
    (loss + out.quantized.sum() + out.sampled.sum()).backward()
    assert loss.isfinite() and out.quantized.isfinite().all() and encoder_output.grad.isfinite().all()
    assert torch.equal(out.quantized, quantizer.lookup(out.codes))
    assert quantizer.projector.weight.grad.isfinite().all()


def test_coherence_pulls_harder_where_sigma_is_small():
    quantizer = make()
    encoder_output = make_encoder_output().detach()
    pulls = []
    for log_variance in (0.0, -2.0):
        encoder_output[:, 3:] = log_variance
        leaf = encoder_output.clone().requires_grad_()
        pulls.append(torch.autograd.grad(quantizer(leaf).losses["coherence"], leaf)[0][:, :3])
    torch.testing.assert_close(pulls[1], pulls[0] * math.exp(2))


def test_consistency_is_the_wasserstein_distance_of_the_fitted_normal():
    # Along commuting covariances it is |mean|^2 + sum (root eigenvalue - 1)^2.
    rows = torch.randn(50, 5, dtype=torch.float64) * 2 + 1
    fitted = MultivariateNormal(rows.mean(dim=0), torch.cov(rows.T))
    roots = torch.linalg.eigvalsh(fitted.covariance_matrix).sqrt()
    expected = fitted.mean.square().sum() + (roots - 1).square().sum()
    assert consistency(rows).item() == pytest.approx(expected.item(), rel=1e-10)
