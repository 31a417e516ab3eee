import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from pipelines.metrics.codebook import codebook_geometry, effective_rank


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_an_orthonormal_table():
    turned = torch.linalg.qr(gaussian(6, 6)).Q
    for codebook in (torch.eye(6), turned, torch.eye(6, 9)):
        assert codebook_geometry(codebook, radius=1.0) == pytest.approx(
            {
                "norm_mean": 1.0,
                "norm_min": 1.0,
                "norm_max": 1.0,
                "distance_mean": math.sqrt(2),
                "distance_min": math.sqrt(2),
                "effective_rank": 5.0,  # centring takes one
                "share_on_ball": 1.0,
            },
            rel=1e-6,
        )


def test_known_norms_and_distances():
    found = codebook_geometry(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 12.0]]))
    distances = [5.0, 12.0, math.sqrt(9 + 64)]
    assert found["norm_mean"] == pytest.approx(17 / 3)
    assert (found["norm_min"], found["norm_max"]) == (0.0, 12.0)
    assert found["distance_mean"] == pytest.approx(np.mean(distances), rel=1e-12)
    assert found["distance_min"] == 5.0
    assert "share_on_ball" not in found


@pytest.mark.parametrize("spectrum", [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0], [5.0], [1.0, 1e-9]])
def test_the_effective_rank_of_known_spectra(spectrum):
    values = torch.tensor(spectrum, dtype=torch.float64)
    shares = np.array(spectrum) / np.sum(spectrum)
    expected = np.exp(-(shares * np.log(shares)).sum())
    # A code and its negative on each axis: the mean is 0 and the singular values are in proportion to the spectrum.
    codebook = torch.cat([values.diag(), -values.diag()]) @ torch.linalg.qr(gaussian(len(values), len(values))).Q
    assert codebook_geometry(codebook + 100)["effective_rank"] == pytest.approx(expected, rel=1e-9)
    left = torch.linalg.qr(gaussian(7, len(values))).Q
    assert effective_rank(left * values) == pytest.approx(expected, rel=1e-12)
    assert effective_rank(1e-3 * (left * values).T) == pytest.approx(expected, rel=1e-12)


def test_the_effective_rank_does_not_see_where_the_table_lies_and_is_bounded_by_its_size():
    for number, dims in ((4, 10), (50, 3)):
        table = gaussian(number, dims)
        rank = codebook_geometry(table)["effective_rank"]
        assert 1 < rank <= min(number - 1, dims)
        assert codebook_geometry(table + 1000)["effective_rank"] == pytest.approx(rank, rel=1e-9)
    assert codebook_geometry(torch.stack([torch.zeros(4), torch.ones(4)]))["effective_rank"] == pytest.approx(1.0)


def test_the_share_on_the_ball_counts_codes_up_to_the_rounding_of_their_norm():
    directions = torch.nn.functional.normalize(gaussian(200, 32).float(), dim=1)
    for radius in (0.37, 1.0, 12.5):
        scales = radius * torch.ones(200, 1)
        scales[:50] *= 0.999
        assert codebook_geometry(directions * scales, radius)["share_on_ball"] == 0.75
    assert codebook_geometry(directions, 2.0)["share_on_ball"] == 0.0
    for none in (None, math.inf):
        assert "share_on_ball" not in codebook_geometry(directions, none)


def test_a_single_code_has_no_distances():
    found = codebook_geometry(torch.tensor([[3.0, 4.0]]))
    assert math.isnan(found["distance_mean"]) and math.isnan(found["distance_min"])
    assert found["norm_mean"] == found["norm_min"] == found["norm_max"] == 5.0
    assert found["effective_rank"] == 0.0


def test_equal_codes_are_at_distance_zero_and_span_nothing():
    found = codebook_geometry(gaussian(1, 8).float().repeat(300, 1))
    assert found["distance_mean"] == found["distance_min"] == 0.0
    assert found["effective_rank"] == 0.0


@pytest.mark.parametrize("number", [2, 255, 256, 257, 513, 600])
def test_distances_are_those_of_all_pairs(number):
    table = gaussian(number, 5).float()
    expected = pdist(table.double().numpy())
    found = codebook_geometry(table)
    assert found["distance_mean"] == pytest.approx(expected.mean(), rel=1e-12)
    assert found["distance_min"] == pytest.approx(expected.min(), rel=1e-12)
    assert found["distance_min"] > 0
    table[-1] = table[0]  # a pair across the blocks
    assert codebook_geometry(table)["distance_min"] == 0.0


def test_close_codes_far_from_zero_are_told_apart():
    steps = gaussian(300, 4)
    found = codebook_geometry(1e6 + steps)
    expected = pdist((1e6 + steps).numpy())
    assert found["distance_mean"] == pytest.approx(expected.mean(), rel=1e-12)
    assert found["distance_min"] == pytest.approx(expected.min(), rel=1e-12)


def test_the_table_may_want_a_gradient_and_is_left_as_it_was():
    table = gaussian(10, 4).requires_grad_()
    before = table.detach().clone()
    assert all(isinstance(value, float) for value in codebook_geometry(table, 1.0).values())
    assert torch.equal(table, before) and table.grad is None


def test_what_is_no_codebook_is_refused():
    for wrong in (torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="not floating point"):
            codebook_geometry(wrong)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            codebook_geometry(torch.tensor([[0.0, value]]))
