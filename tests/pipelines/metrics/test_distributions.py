from itertools import pairwise

import numpy as np
import places
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_isc import isc_features_to_metric

from pipelines.metrics.distributions import FeatureMoments, frechet_distance, inception_score

GOLDEN = np.load(places.GOLDEN / "feature_metrics.npz")


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(*batches):
    found = FeatureMoments()
    for batch in batches:
        found.update(batch)
    return found


def distance(a, b):
    a, b = moments(a), moments(b)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def rotation(dims, seed=0):
    return torch.linalg.qr(gaussian(dims, dims, seed=seed)).Q


def assert_same(a, b, tolerance=1e-9):
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance * b.mean.abs().max().item())
    scale = b.covariance.abs().max().item()
    torch.testing.assert_close(a.covariance, b.covariance, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_and_covariance_are_those_of_numpy(dtype):
    features = (gaussian(50, 7).cumsum(dim=1) + 3).to(dtype)
    found = moments(features)
    rows = features.double().numpy()
    assert found.count == 50
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e3]))
def test_moments_are_the_same_for_any_batches_in_any_order(cuts, seed, offset):
    features = gaussian(60, 5, seed=seed).cumsum(dim=1) + offset
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    edges = [0, *sorted(cuts), 60]
    batches = [features[order][start:end] for start, end in pairwise(edges)]  # some are empty
    assert_same(moments(*batches), moments(features))


def test_merging_is_associative_and_equal_to_one_pass():
    features = gaussian(60, 5) * torch.arange(1, 6) + 2
    first, second, third = features[:7], features[7:20], features[20:]
    left, inner, right = moments(first), moments(second), moments(first)
    left.merge(inner)
    left.merge(moments(third))
    inner.merge(moments(third))
    right.merge(inner)
    assert_same(left, moments(features), 1e-12)
    assert_same(right, moments(features), 1e-12)


def test_merging_with_nothing_changes_nothing_and_shares_nothing():
    features = gaussian(20, 3)
    other = moments(features)
    ours = FeatureMoments()
    ours.merge(other)
    assert_same(ours, other, 0)
    ours.merge(FeatureMoments())
    assert_same(ours, other, 0)
    ours.update(features + 5)
    assert_same(other, moments(features), 0)


def test_covariance_keeps_its_digits_far_from_zero():
    steps = torch.randint(-128, 129, (500, 4), generator=torch.Generator().manual_seed(0)).double() / 64
    expected = np.cov(steps.numpy(), rowvar=False)
    for batch in (1, 37, 500):  # 1e6 + steps is exact
        found = moments(*(1e6 + steps).split(batch))
        np.testing.assert_allclose(found.covariance, expected, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found.mean - 1e6, steps.mean(dim=0), rtol=0, atol=1e-8)


def test_moments_refuse_what_are_no_features():
    found = moments(gaussian(1, 3))
    for wrong, reason in (
        (torch.zeros(3), r"torch.float32 \(3,\), not floating point \(B, D\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "torch.int64"),
        (torch.tensor([[0.0, 1.0, float("nan")]]), "NaN or infinity"),
        (torch.tensor([[0.0, 1.0, float("inf")]]), "NaN or infinity"),
        (torch.zeros(2, 4), "4 dimensions after 3"),
    ):
        with pytest.raises(ValueError, match=reason):
            found.update(wrong)
    assert found.count == 1
    for too_few in (found, FeatureMoments()):
        with pytest.raises(ValueError, match=f"2 images or more, got {too_few.count}"):
            _ = too_few.covariance


def test_frechet_distance_equals_its_definition():
    a = gaussian(120, 12).cumsum(dim=1)
    b = gaussian(150, 12, seed=1) + 0.5
    rows_a, rows_b = a.numpy(), b.numpy()
    covariance_a, covariance_b = np.cov(rows_a, rowvar=False), np.cov(rows_b, rowvar=False)
    means = rows_a.mean(axis=0) - rows_b.mean(axis=0)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b).real
    expected = means @ means + np.trace(covariance_a + covariance_b - 2 * root)
    assert expected > 1
    assert distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_equals_the_golden_number():
    fake, real = torch.from_numpy(GOLDEN["fake"]), torch.from_numpy(GOLDEN["real"])
    assert distance(fake, real) == pytest.approx(float(GOLDEN["frechet"]), rel=1e-9)


@pytest.mark.parametrize(("images", "dims"), [(200, 16), (10, 64), (2, 300)])
def test_frechet_distance_of_a_set_to_itself_is_zero(images, dims):
    features = gaussian(images, dims)
    assert 0 <= distance(features, features) < 1e-9
    assert 0 <= distance(features, features.flip(0)) < 1e-9


def test_frechet_distance_between_diagonal_gaussians_has_a_closed_form():
    mean_a, mean_b = gaussian(9), gaussian(9, seed=1)
    a, b = gaussian(9, seed=2).square(), gaussian(9, seed=3).square()
    expected = ((mean_a - mean_b).square() + (a.sqrt() - b.sqrt()).square()).sum().item()
    assert frechet_distance(mean_a, a.diag(), mean_b, b.diag()) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_is_exact_where_covariances_are_rank_deficient():
    dims, rank = 200, 5
    turn = rotation(dims)
    mean = torch.zeros(dims)
    a, b = torch.arange(1.0, rank + 1, dtype=torch.float64), torch.linspace(0.5, 9.0, rank, dtype=torch.float64)
    for first, shared in ((0, True), (rank, False)):
        diagonal_a, diagonal_b = torch.zeros(2, dims, dtype=torch.float64)
        diagonal_a[:rank] = a
        diagonal_b[first : first + rank] = b
        expected = (a.sqrt() - b.sqrt()).square().sum() if shared else a.sum() + b.sum()
        turned = [turn * diagonal @ turn.T for diagonal in (diagonal_a, diagonal_b)]
        # The roots of eigenvalues that are 0 up to rounding would add 1e-8 for each of the other dimensions.
        assert frechet_distance(mean, turned[0], mean, turned[1]) == pytest.approx(expected.item(), abs=1e-10)


def test_frechet_distance_is_symmetric_and_blind_to_rotation_and_shift_of_both():
    a, b = gaussian(40, 8).cumsum(dim=1), gaussian(50, 8, seed=1) + 1
    expected = distance(a, b)
    assert distance(b, a) == pytest.approx(expected, rel=1e-12)
    assert distance(a @ rotation(8), b @ rotation(8)) == pytest.approx(expected, rel=1e-10)
    assert distance(a + 7, b + 7) == pytest.approx(expected, rel=1e-10)
    assert distance(3 * a, 3 * b) == pytest.approx(9 * expected, rel=1e-10)


def test_frechet_distance_refuses_other_shapes_and_what_is_not_finite():
    mean, covariance = torch.zeros(3), torch.eye(3)
    for wrong in (
        (torch.zeros(4), covariance, mean, covariance),
        (mean, covariance, torch.zeros(4), torch.eye(4)),
        (mean, covariance, mean, torch.zeros(3)),
        (mean[None], covariance, mean[None], covariance),
        (torch.zeros(0), torch.zeros(0, 0), torch.zeros(0), torch.zeros(0, 0)),
    ):
        with pytest.raises(ValueError, match="of different extractors"):
            frechet_distance(*wrong)
    for place in range(4):
        values = [mean.clone(), covariance.clone(), mean.clone(), covariance.clone()]
        values[place].view(-1)[1] = float("nan")
        with pytest.raises(ValueError, match="NaN or infinity"):
            frechet_distance(*values)


def covariance(dims=40, rank=None, seed=0, scale=1.0):
    """Of features whose directions weigh from 1 to 1e-4, as Inception's do; of a lower rank for fewer images."""
    weights = torch.logspace(0, -4, dims, dtype=torch.float64)
    rows = gaussian(rank or 20 * dims, dims, seed=seed) * weights
    return scale * moments(rows @ rotation(dims, seed)).covariance


def no_covariances():
    """What a file may hold in the place of a covariance, and what is said of it."""
    good = covariance()
    apart, negative, of_indices = good.clone(), good.clone(), good.clone()
    apart[3, 17] += 0.01 * good.max()
    negative[5, 5] = -negative[5, 5]
    values, vectors = torch.linalg.eigh(good)
    values[0] = -1e-3 * values[-1]
    of_indices[[2, 9]] = of_indices[[9, 2]]  # two rows are exchanged, and not the columns
    return {
        "one number apart": (apart, "not symmetric"),
        "rows exchanged": (of_indices, "not symmetric"),
        "a triangle": (good.tril(), "not symmetric"),
        "features in its place": (gaussian(40, 40), "not symmetric"),
        "a negative variance": (negative, "not positive semi-definite"),
        "a negative eigenvalue": (vectors * values @ vectors.T, "not positive semi-definite"),
        "its negative": (-good, "not positive semi-definite"),
        "minus one everywhere": (-torch.ones(40, 40, dtype=torch.float64), "not positive semi-definite"),
        "less than was taken away": (good - 0.01 * torch.eye(40), "not positive semi-definite"),
    }


@pytest.mark.parametrize(("matrix", "text"), no_covariances().values(), ids=no_covariances())
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_what_is_no_covariance_has_no_distance(matrix, text, scale):
    mean, good = torch.zeros(40), covariance(seed=1)
    for arguments, which in (((scale * matrix, good), "first"), ((good, scale * matrix), "second")):
        with pytest.raises(ValueError, match=f"the {which} covariance is {text}"):
            frechet_distance(mean, arguments[0], mean, arguments[1])


@pytest.mark.parametrize("dims", [1, 2, 64, 300])
@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_covariance_rounded_to_float32_is_one(dims, rank, scale):
    """Also where most eigenvalues are zero, and half of them are below after the rounding."""
    mean, exact = torch.zeros(dims), covariance(dims, rank, scale=scale)
    rounded = exact.float().double()
    other = covariance(dims, seed=1, scale=scale)
    expected = frechet_distance(mean, exact, mean, other)
    assert frechet_distance(mean, rounded, mean, other) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(mean, exact, mean, rounded) < 1e-3 * exact.trace()


def test_a_covariance_summed_in_float32_is_one():
    rows = (gaussian(400, 300) * torch.logspace(0, -4, 300)).float() + 0.5
    rows = rows - rows.mean(dim=0)
    summed = rows.T @ rows / 399
    assert frechet_distance(torch.zeros(300), summed, torch.zeros(300), summed) < 1e-3 * summed.trace()


def test_equal_images_have_a_covariance_of_zeros():
    mean, good = torch.zeros(40), covariance()
    nothing = torch.zeros(40, 40)
    assert frechet_distance(mean, nothing, mean, good) == pytest.approx(good.trace().item(), rel=1e-12)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_complex_moments_have_no_distance(place, kind):
    values = [torch.zeros(3), torch.eye(3), torch.zeros(3), torch.eye(3)]
    values[place] = values[place] + 1j
    with pytest.raises(ValueError, match="complex"):
        frechet_distance(*(value.numpy() if kind == "numpy" else value for value in values))


def test_a_distance_beyond_float64_is_an_error_and_not_zero():
    mean, far = torch.zeros(3, dtype=torch.float64), torch.full((3,), 1e200, dtype=torch.float64)
    with pytest.raises(ValueError, match="float64"):
        frechet_distance(mean, torch.eye(3), far, torch.eye(3))
    huge = torch.full((3, 3), 1e308, dtype=torch.float64)
    with pytest.raises(ValueError):
        frechet_distance(mean, huge, mean, torch.eye(3))


def test_numbers_in_lists_keep_float64():
    third = 1 / 3
    assert frechet_distance([third], [[0.0]], [0.0], [[0.0]]) == pytest.approx(third**2, rel=1e-15)


def test_inception_score_equals_the_golden_number():
    score, deviation = inception_score(torch.from_numpy(GOLDEN["logits"]), splits=1)
    assert score == pytest.approx(float(GOLDEN["inception_score_one_split"]), rel=1e-12)
    assert deviation == 0.0


@pytest.mark.parametrize(("number", "splits"), [(500, 10), (103, 7), (11, 10)])
def test_inception_score_equals_torch_fidelitys(number, splits):
    logits = 3 * gaussian(number, 12, seed=number)
    expected = isc_features_to_metric(logits, splits, rng_seed=2020)
    score, deviation = inception_score(logits, splits)
    assert score == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-9)
    ordered = isc_features_to_metric(logits, splits, shuffle=False)
    assert inception_score(logits, splits, seed=None)[0] == pytest.approx(ordered["inception_score_mean"], rel=1e-12)
    assert inception_score(logits, splits, seed=None)[0] != score


@pytest.mark.parametrize("height", [1e4, 1e30])
def test_inception_score_counts_the_classes_where_probabilities_underflow(height):
    for classes in (1, 4, 10):
        logits = height * torch.eye(10)[:classes].repeat(6, 1)
        assert inception_score(logits, splits=1)[0] == pytest.approx(classes, rel=1e-12)
    counts = torch.tensor([1, 2, 3, 6])
    logits = height * torch.eye(10)[:4].repeat_interleave(counts, dim=0)
    shares = counts / counts.sum()
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    assert inception_score(logits, splits=1)[0] == pytest.approx(expected, rel=1e-6)


def test_inception_score_of_samples_sorted_by_class_does_not_fall():
    logits = 50.0 * torch.eye(10, dtype=torch.float64).repeat_interleave(40, dim=0)
    assert inception_score(logits, seed=None)[0] == pytest.approx(1.0)  # each split is one class
    assert 8 < inception_score(logits)[0] <= 10


def test_inception_score_of_images_read_alike_is_one_and_a_constant_in_the_logits_changes_nothing():
    logits = 3 * gaussian(40, 6)
    assert inception_score(logits[:1].repeat(40, 1)) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert inception_score(logits + gaussian(40, 1, seed=1)) == pytest.approx(inception_score(logits), rel=1e-12)


def test_inception_score_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    inception_score(gaussian(40, 6))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_inception_score_refuses_too_few_images_and_other_logits():
    with pytest.raises(ValueError, match="9 images are too few for 10 splits"):
        inception_score(gaussian(9, 4))
    with pytest.raises(ValueError, match="0 splits"):
        inception_score(gaussian(9, 4), splits=0)
    for wrong in (torch.zeros(20), torch.zeros(20, 4, dtype=torch.int64), torch.full((20, 4), float("nan"))):
        with pytest.raises(ValueError, match="not finite floating point"):
            inception_score(wrong)
