import math

import numpy as np
import pytest
import torch

from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.vectors import unit_vectors
from tokenizer.functional.von_mises_fisher import kl_to_uniform, sample

KAPPAS = [1.0, 1.7, 5.0, 30.0, 63.9, 64.1, 300.0, 1e4, 1e6]
DIMENSIONS = [2, 3, 4, 16, 65, 129, 130, 131, 512]


def integrated(kappa, dimensions):
    """A = E[w] and KL to uniform, from the density of w = mean . y, ~ exp(kappa w) (1 - w^2)^((m - 3) / 2).

    With w = cos(angle) the integrand is smooth: its logarithm is kappa cos(angle) + (m - 2) log sin(angle). The
    trapezoidal rule over its peak alone.
    """
    free = dimensions - 2
    peak = math.acos((-free + math.hypot(free, 2 * kappa)) / (2 * kappa)) if free else 0.0
    width = 1 / math.sqrt(math.hypot(free, 2 * kappa) / 2)
    angles = np.linspace(max(0.0, peak - 40 * width), min(math.pi, peak + 40 * width), 100_001)
    with np.errstate(divide="ignore"):
        log_area = free * np.log(np.sin(angles)) if free else np.zeros_like(angles)
    # 1 - cos without cancellation.
    heights = -2 * kappa * np.sin(angles / 2) ** 2
    weights = np.exp(heights + log_area - (heights + log_area).max())
    total = np.trapezoid(weights, angles)
    mean_height = np.trapezoid(weights * heights, angles) / total
    log_total = math.log(total) + (heights + log_area).max()
    # Of the uniform distribution: the integral of sin^(m - 2) over [0, pi].
    log_uniform = math.log(math.pi) / 2 + math.lgamma((dimensions - 1) / 2) - math.lgamma(dimensions / 2)
    return 1 + mean_height / kappa, mean_height - log_total + log_uniform


def kl_and_slope(kappas, dimensions, dtype=torch.float64):
    kappas = torch.tensor(kappas, dtype=dtype, requires_grad=True)
    values = kl_to_uniform(kappas, dimensions)
    values.sum().backward()
    return values.detach(), kappas.grad


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_the_divergence_equals_the_integral(dimensions):
    values, _ = kl_and_slope(KAPPAS, dimensions)
    expected = [integrated(kappa, dimensions)[1] for kappa in KAPPAS]
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9, atol=2e-9)


def test_the_divergence_equals_its_closed_forms():
    kappas = torch.tensor(KAPPAS, dtype=torch.float64)
    circle = kappas * torch.special.i1e(kappas) / torch.special.i0e(kappas) - kappas - torch.special.i0e(kappas).log()
    torch.testing.assert_close(kl_to_uniform(kappas, 2), circle, rtol=1e-10, atol=2e-10)
    # On the sphere C is kappa / (4 pi sinh kappa) and A is coth kappa - 1 / kappa.
    log_sinh = kappas - math.log(2) + (-torch.exp(-2 * kappas)).log1p()
    sphere = kappas / torch.tanh(kappas) - 1 + kappas.log() - log_sinh
    torch.testing.assert_close(kl_to_uniform(kappas, 3), sphere, rtol=1e-10, atol=2e-10)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
def test_the_slope_is_that_of_the_divergence(dimensions):
    kappas = torch.tensor([1.0, 1.7, 5.0, 30.0, 63.0, 66.0, 300.0, 1e4, 1e6], dtype=torch.float64)
    step = 1e-4
    higher, lower = (kl_to_uniform(kappas * math.exp(side * step), dimensions) for side in (1, -1))
    _, slope = kl_and_slope(kappas.tolist(), dimensions)
    torch.testing.assert_close(slope * kappas, (higher - lower) / (2 * step), rtol=3e-7, atol=1e-10)


@pytest.mark.parametrize("dimensions", [2, 3, 512])
def test_the_two_expansions_meet_and_the_divergence_grows_with_kappa(dimensions):
    order = dimensions / 2 - 1
    seam = math.sqrt(max(64**2 - order**2, 4))
    values, slopes = kl_and_slope([seam * (1 - 1e-12), seam * (1 + 1e-12)], dimensions)
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-9)
    assert slopes[0].item() == pytest.approx(slopes[1].item(), rel=1e-8)
    values, slopes = kl_and_slope(np.geomspace(1e-3, 1e30, 400).tolist(), dimensions)
    assert (values.diff() > 0).all() and (slopes > 0).all() and values.isfinite().all() and values[0] >= 0


@pytest.mark.parametrize("dimensions", [2, 3, 64, 512])
def test_float32_is_computed_in_float64(dimensions):
    values, slopes = kl_and_slope(KAPPAS, dimensions, torch.float32)
    exact, exact_slopes = kl_and_slope(KAPPAS, dimensions)
    assert values.dtype == slopes.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=2e-7, atol=0)
    torch.testing.assert_close(slopes.double(), exact_slopes, rtol=2e-7, atol=0)


def test_there_is_no_second_derivative():
    kappa = torch.tensor([3.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(kl_to_uniform(kappa, 4).sum(), kappa, create_graph=True)


def drawn(kappa, dimensions, samples=10_000, dtype=torch.float64):
    mean = unit_vectors(torch.randn(dimensions, dtype=dtype))
    noise = ImageNoise(1, torch.device("cpu"), seed=7)
    means = mean.expand(1, samples, dimensions)
    return sample(means, torch.full((1, samples, 1), kappa, dtype=dtype), noise)[0], mean


@pytest.mark.parametrize("dimensions", [2, 3, 8, 64])
@pytest.mark.parametrize("kappa", [1.0, 10.0, 300.0, 1e6])
def test_samples_have_the_mean_and_the_spread_of_the_distribution(kappa, dimensions):
    samples, mean = drawn(kappa, dimensions)
    torch.testing.assert_close(samples.norm(dim=1), torch.ones(len(samples), dtype=torch.float64))
    resultant, _ = integrated(kappa, dimensions)
    along = samples @ mean
    variance = 1 - resultant**2 - (dimensions - 1) / kappa * resultant
    error = math.sqrt(max(variance, 1e-24) / len(samples))
    assert abs(along.mean().item() - resultant) < 5 * error + 1e-11
    assert along.var().item() == pytest.approx(variance, rel=0.1, abs=1e-11)
    # What is across the mean goes everywhere alike.
    across = samples - along[:, None] * mean
    spread = (1 - (along**2).mean().item()) / (dimensions - 1)
    assert across.mean(dim=0).abs().max() < 6 * math.sqrt(spread / len(samples))
    covariance = across.T @ across / len(samples) - spread * (
        torch.eye(dimensions, dtype=torch.float64) - torch.outer(mean, mean)
    )
    assert covariance.abs().max() < 12 * spread / math.sqrt(len(samples))


@pytest.mark.parametrize(("kappa", "dimensions"), [(1.0, 3), (20.0, 3), (5.0, 2)])
def test_samples_have_the_distribution_of_the_density(kappa, dimensions):
    samples, mean = drawn(kappa, dimensions)
    along = (samples @ mean).sort().values.numpy()
    grid = np.linspace(0, math.pi, 20_001)
    density = np.exp(kappa * (np.cos(grid) - 1)) * np.sin(grid) ** (dimensions - 2)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    expected = 1 - np.interp(np.arccos(along.clip(-1, 1)), grid, below / below[-1])
    distance = np.abs(expected - np.arange(len(along)) / len(along)).max()
    assert distance < 1.95 / math.sqrt(len(along))  # Kolmogorov and Smirnov: one in a thousand is beyond


@pytest.mark.parametrize("dimensions", [2, 3, 8])
@pytest.mark.parametrize("towards", ["pole", "other pole", "across", "anywhere"])
def test_the_pole_is_turned_to_the_mean_wherever_that_is(dimensions, towards):
    mean = torch.zeros(dimensions)
    if towards == "anywhere":
        mean = unit_vectors(torch.randn(dimensions))
    else:
        mean[1 if towards == "across" else 0] = -1 if towards == "other pole" else 1
    mean.requires_grad_()
    samples = sample(mean.expand(1, 50, dimensions), torch.full((1, 50, 1), 1e5), ImageNoise(1, mean.device, 3))
    assert (samples @ mean > 0.99).all()
    samples.sum().backward()
    assert mean.grad.isfinite().all()


def test_the_gradient_is_that_of_the_path_at_the_accepted_noise():
    mean = unit_vectors(torch.randn(2, 3, 5, dtype=torch.float64)).requires_grad_()
    kappa = (torch.rand(2, 3, 1, dtype=torch.float64) * 20 + 1).requires_grad_()
    # A step of 1e-6 changes no acceptance here.
    assert torch.autograd.gradcheck(lambda m, k: sample(m, k, ImageNoise(2, m.device, 5)), [mean, kappa], eps=1e-6)


def test_the_gradient_to_the_mean_is_that_of_the_expectation():
    # d/dmean E[c . y] = A c, along the sphere: there the acceptance has no part in it.
    mean = unit_vectors(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)).requires_grad_()
    weight = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    kappa = torch.full((1, 40_000, 1), 4.0, dtype=torch.float64)
    unit = mean / mean.norm()
    samples = sample(unit.expand(1, 40_000, 3), kappa, ImageNoise(1, mean.device, 1))
    (samples @ weight).mean().backward()
    across = weight - (weight @ mean.detach()) * mean.detach()
    torch.testing.assert_close(mean.grad, integrated(4.0, 3)[0] * across, rtol=0, atol=0.03)


def test_any_split_of_the_images_draws_alike():
    mean, kappa = unit_vectors(torch.randn(6, 4, 4, 3)), torch.rand(6, 4, 4, 1) * 50 + 1
    whole = sample(mean, kappa, ImageNoise(6, mean.device, 11))
    parts = [sample(mean[i:j], kappa[i:j], ImageNoise(j - i, mean.device, 11, i)) for i, j in ((0, 1), (1, 4), (4, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sample(mean, kappa, ImageNoise(6, mean.device, 12)), whole)


@pytest.mark.parametrize("dimensions", [2, 3, 512])
@pytest.mark.parametrize("kappa", [1.0, 1e6, 1e12, 1e30])
def test_samples_are_finite_directions_in_float32(kappa, dimensions):
    mean = unit_vectors(torch.randn(2, 200, dimensions))
    mean[0, 0] = 0  # of a head of zeros
    mean.requires_grad_()
    kappas = torch.full((2, 200, 1), kappa, requires_grad=True)
    samples = sample(mean, kappas, ImageNoise(2, mean.device))
    torch.testing.assert_close(samples.norm(dim=-1), torch.ones(2, 200), rtol=0, atol=1e-5)
    samples.square().sum().backward()
    assert mean.grad.isfinite().all() and kappas.grad.isfinite().all()


def test_a_proposal_opposite_to_the_mean_is_rejected():
    # In float32 one of a few thousand directions on the circle is the other pole: 0 / 0 of the largest kappas.
    mean = torch.tensor([0.6, 0.8]).expand(1, 100_000, 2)
    samples = sample(mean, torch.full((1, 100_000, 1), 1e30), ImageNoise(1, mean.device, 2))
    torch.testing.assert_close(samples, mean)


def test_a_diverged_concentration_is_no_endless_loop():
    mean = unit_vectors(torch.randn(1, 3, 4))
    kappa = torch.tensor([2.0, math.nan, math.inf]).reshape(1, 3, 1)
    samples = sample(mean, kappa, ImageNoise(1, mean.device))
    assert samples[0, 0].isfinite().all() and samples[0, 1:].isnan().all()
