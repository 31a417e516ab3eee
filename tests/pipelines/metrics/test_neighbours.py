import numpy as np
import places
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import prc_features_to_metric

from pipelines.metrics import neighbours
from pipelines.metrics.neighbours import neighbour_distances, precision_recall

GOLDEN = np.load(places.GOLDEN / "feature_metrics.npz")


@pytest.fixture(autouse=True)
def usual_precision():
    yield
    torch.set_float32_matmul_precision("highest")


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(a, b):
    """All of them at once, float64, from the differences."""
    return (a.double()[:, None] - b.double()[None]).square().sum(dim=-1)


def oracle_radii(features, k):
    return distances(features, features).fill_diagonal_(torch.inf).kthvalue(k, dim=1).values


def oracle(samples, reference, k):
    apart = distances(samples, reference)
    within_reference = (apart <= oracle_radii(reference, k)[None]).any(dim=1)
    within_samples = (apart <= oracle_radii(samples, k)[:, None]).any(dim=0)
    return within_reference.double().mean().item(), within_samples.double().mean().item()


def assert_exact(samples, reference, k=3):
    assert precision_recall(samples, reference, k) == oracle(samples, reference, k)
    for features in (samples, reference):
        assert torch.equal(neighbour_distances(features, k), oracle_radii(features, k))


KINDS = {
    "spread": lambda features: features,
    "grid": lambda features: features.round(),  # many ties and duplicates
    "offset": lambda features: features + 4096,
    "large": lambda features: features * 1e18,
    "small": lambda features: features * 1e-18,
    "scales": lambda features: features * 10.0 ** torch.linspace(-20, 18, len(features)).view(-1, 1),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    numbers=st.tuples(st.integers(5, 24), st.integers(5, 24)),
    dims=st.integers(1, 12),
    k=st.integers(1, 4),
    tile=st.sampled_from([1, 3, 7, 16, 2048]),
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_every_number_is_that_of_all_distances_at_once(numbers, dims, k, tile, kind, dtype, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "TILE", tile)
        samples, reference = (
            KINDS[kind](gaussian(number, dims, seed=seed + side)).to(dtype) for side, number in enumerate(numbers)
        )
        assert_exact(samples, reference, k)


@pytest.mark.parametrize("offset", [1e3, 1e8])
def test_an_offset_of_both_sets_far_above_their_spread_costs_no_digits(offset):
    # Steps of 2^-20 are exact beside either offset.
    samples, reference = ((gaussian(60, 8, seed=seed) * 2**20).round() / 2**20 for seed in (0, 1))
    shifted = samples + offset, reference + offset
    assert_exact(*shifted)
    assert precision_recall(*shifted) == oracle(samples, reference, 3)


def test_clusters_tiny_beside_the_distance_between_them_are_told_apart():
    base = gaussian(40, 6)
    samples = torch.cat([base[:20] * 1e-20, base[20:] * 1e-20 + 1e20 * torch.ones(6, dtype=torch.float64)])
    reference = torch.cat([gaussian(20, 6, seed=1) * 1e-20, gaussian(5, 6, seed=2) * 1e20])
    assert_exact(samples, reference)


@pytest.mark.parametrize("size", [1e-18, 1e-20, 1e-21, 1e-22, 1e-23])
def test_products_too_small_for_single_precision_decide_nothing(monkeypatch, size):
    monkeypatch.setattr(neighbours, "TILE", 5)
    far = gaussian(5, 6)
    sets = [torch.cat([far, size * gaussian(20, 6, seed=seed), -far]) for seed in (1, 2)]  # the small ones at the mean
    assert_exact(*sets)


def test_identical_sets_cover_each_other_in_any_order_and_with_duplicates():
    features = gaussian(50, 16, dtype=torch.float32)
    assert precision_recall(features, features) == (1.0, 1.0)
    assert precision_recall(features, features.flip(0)) == (1.0, 1.0)
    assert precision_recall(features.repeat(2, 1), features, 1) == (1.0, 1.0)
    # Five of each: all radii are 0, and only an equal point is within.
    copies = features[:10].repeat(5, 1)
    assert neighbour_distances(copies, 3).tolist() == [0.0] * 50
    assert precision_recall(copies, copies) == (1.0, 1.0)
    other = copies.clone()
    other[:20, 0] += 2.0**-20
    assert precision_recall(other, copies) == oracle(other, copies, 3) != (1.0, 1.0)


def two_clusters(dims, spread, number=40):
    """Rows near v and near -v, v constant: a float32 product rounds each of its sums in the same direction.

    Everything is a multiple of 2^-20, so that float64 distances are exact.
    """
    noise = (gaussian(number, dims, seed=dims) * spread * 2**20).round() / 2**20
    level = round(2**20 / 3) / 2**20
    signs = torch.ones(number, 1, dtype=torch.float64)
    signs[number // 2 :] = -1
    return signs * level + noise


@pytest.mark.parametrize("dims", [256, 512, 1024])
@pytest.mark.parametrize("spread", [1e-4, 1e-2])
def test_points_on_the_boundary_to_the_last_bit_are_within_and_just_beyond_are_not(dims, spread):
    reference = two_clusters(dims, spread)
    apart = distances(reference, reference).fill_diagonal_(torch.inf)
    radii, nearest = apart.kthvalue(3, dim=1)
    mirrored = 2 * reference - reference[nearest]  # as far from its centre as the third neighbour
    outward = (mirrored - reference).sign()
    axis = (mirrored - reference).abs().argmax(dim=1, keepdim=True)
    step = torch.zeros_like(mirrored).scatter_(1, axis, outward.gather(1, axis) * 2.0**-20)
    own = torch.arange(len(reference))
    for samples, inside in ((mirrored, True), (mirrored - step, True), (mirrored + step, False)):
        assert bool(((samples - reference).square().sum(dim=1) <= radii).all()) is inside
        hits = (distances(samples, reference) <= radii[None]).clone()
        assert (hits[own, own] == inside).all()
    samples = torch.cat([mirrored, mirrored + step])
    expected = oracle(samples, reference, 3)
    assert 0.5 <= expected[0] < 1.0  # the first half is within, not all of the second is
    assert precision_recall(samples, reference) == expected
    assert precision_recall(reference, samples) == oracle(reference, samples, 3)


@pytest.mark.parametrize("dims", [256, 1024])
def test_neighbours_that_single_precision_cannot_order_are_ordered(dims):
    features = two_clusters(dims, spread=1e-4, number=80)
    assert torch.equal(neighbour_distances(features, 3), oracle_radii(features, 3))
    assert torch.equal(neighbour_distances(features.float(), 3), oracle_radii(features.float(), 3))


def test_precision_and_recall_equal_the_golden_numbers():
    fake, real = torch.from_numpy(GOLDEN["fake"]), torch.from_numpy(GOLDEN["real"])
    precision, recall = precision_recall(fake, real, int(GOLDEN["neighbours"]))
    assert precision == pytest.approx(float(GOLDEN["precision"]), rel=1e-12)
    assert recall == pytest.approx(float(GOLDEN["recall"]), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_equal_torch_fidelitys(seed):
    samples, reference = gaussian(150, 10, seed=seed) * 0.9 + 0.3, gaussian(120, 10, seed=100 + seed)
    theirs = prc_features_to_metric(samples, reference, prc_neighborhood=3, save_cpu_ram=True, verbose=False)
    assert precision_recall(samples, reference) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_samples_shrunk_towards_their_mean_are_more_precise_and_recall_less():
    samples, reference = gaussian(300, 8, seed=0), gaussian(300, 8, seed=1)
    found = [precision_recall(samples.mean(0) + s * (samples - samples.mean(0)), reference) for s in (1, 0.8, 0.6, 0.3)]
    precisions, recalls = zip(*found, strict=True)
    assert list(precisions) == sorted(precisions) and precisions[0] < precisions[-1]
    assert list(recalls) == sorted(recalls, reverse=True) and recalls[0] > recalls[-1] + 0.5


def test_collapsed_samples_are_precise_and_recall_nothing():
    reference = gaussian(200, 8)
    samples = reference[:1] + 1e-3 * gaussian(100, 8, seed=1)
    precision, recall = precision_recall(samples, reference)
    assert precision == 1.0
    assert recall <= 0.01
    assert precision_recall(reference, samples) == (recall, precision)


def test_the_order_of_rows_changes_nothing(monkeypatch):
    monkeypatch.setattr(neighbours, "TILE", 16)
    samples, reference = gaussian(70, 5), gaussian(50, 5, seed=1) + 0.5
    expected, radii = precision_recall(samples, reference), neighbour_distances(samples, 3)
    assert 0 < expected[0] < 1 and 0 < expected[1] < 1
    for seed in range(3):
        orders = [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (70, 50)]
        assert precision_recall(samples[orders[0]], reference[orders[1]]) == expected
        assert torch.equal(neighbour_distances(samples[orders[0]], 3), radii[orders[0]])


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_a_lower_precision_of_products_changes_nothing(setting):
    reference = two_clusters(256, 1e-2)
    radii, nearest = distances(reference, reference).fill_diagonal_(torch.inf).kthvalue(3, dim=1)
    samples = 2 * reference - reference[nearest]
    expected = precision_recall(samples, reference)
    torch.set_float32_matmul_precision(setting)
    assert neighbours._Screen(reference).dtype is torch.float64  # no processor here may follow the setting
    assert precision_recall(samples, reference) == expected
    assert torch.equal(neighbour_distances(reference, 3), radii)


def test_more_neighbours_cover_more():
    samples, reference = gaussian(60, 5), gaussian(60, 5, seed=1) + 1
    found = [precision_recall(samples, reference, k) for k in (1, 2, 4, 8, 59)]
    for one in zip(*found, strict=True):
        assert list(one) == sorted(one) and one[0] < one[-1]
    assert torch.equal(neighbour_distances(samples, 59), oracle_radii(samples, 59))  # the farthest


def test_features_that_cannot_be_compared_are_refused():
    good = gaussian(10, 4)
    bad = good.clone()
    bad[3, 1] = float("nan")
    for wrong, reason in (
        (good.long(), r"torch.int64 \(10, 4\), not floating point"),
        (good[0], r"torch.float64 \(4,\), not floating point"),
        (good[:3], "3 {role} are too few for 3 neighbours; pass at least 4"),
        (bad, "{role} features hold NaN or infinity"),
        (bad.nan_to_num(float("inf")), "{role} features hold NaN or infinity"),
        (good[:, :3], "dimensions; take one extractor"),
    ):
        for role, sets in (("samples", (wrong, good)), ("reference", (good, wrong))):
            with pytest.raises(ValueError, match=reason.format(role=role)):
                precision_recall(*sets)


def test_a_lower_precision_around_it_changes_nothing(monkeypatch):
    reference = two_clusters(256, 1e-2)
    apart, nearest = distances(reference, reference).fill_diagonal_(torch.inf).kthvalue(3, dim=1)
    mirrored = 2 * reference - reference[nearest]  # on the boundary up to rounding
    expected = oracle(mirrored, reference, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert precision_recall(mirrored, reference) == expected
        assert torch.equal(neighbour_distances(reference, 3), apart)

    def refuse():  # as PyTorch does where the precision was set for one backend
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert precision_recall(mirrored, reference) == expected


@pytest.mark.parametrize(("number", "k"), [(3, 3), (5, 0)])
def test_neighbours_that_are_not_there_are_refused(number, k):
    with pytest.raises(ValueError, match="too few for"):
        neighbour_distances(gaussian(number, 2), k)
