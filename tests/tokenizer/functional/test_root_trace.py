import pytest
import torch

from tokenizer.functional.root_trace import root_trace, root_trace_by_products


def covariance(rows, dim):
    """Of variances from 0.01 to 9; of fewer rows than dimensions it has directions without any."""
    rows = torch.randn(rows, dim, dtype=torch.float64) * torch.linspace(0.1, 3, dim, dtype=torch.float64)
    return torch.cov(rows.T)


def test_the_root_is_that_of_the_singular_values():
    rows = torch.randn(50, 6, dtype=torch.float64)
    centred = rows - rows.mean(dim=0)
    expected = torch.linalg.svdvals(centred / 7).sum()
    torch.testing.assert_close(root_trace(torch.cov(rows.T)), expected)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e8])
@pytest.mark.parametrize(("rows", "dim"), [(1000, 2), (1000, 64), (8, 256), (2, 3)])
def test_products_give_the_value_of_the_eigenvalues(rows, dim, scale):
    matrix = covariance(rows, dim) * scale
    expected = torch.linalg.eigvalsh(matrix).clamp(min=0).add(1e-6).sqrt().sum()
    torch.testing.assert_close(root_trace_by_products(matrix), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("rows", "dim"), [(1000, 64), (8, 32)])
def test_gradients_at_the_rows_are_those_of_the_eigenvalues(rows, dim):
    table = torch.randn(rows, dim, dtype=torch.float64, requires_grad=True)
    both = [function(torch.cov(table.T)) for function in (root_trace, root_trace_by_products)]
    wanted, found = (torch.autograd.grad(value, table)[0] for value in both)
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.parametrize("function", [root_trace, root_trace_by_products])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0])
def test_rows_that_hardly_vary_have_finite_gradients(function, scale):
    rows = (scale * torch.randn(3, 16, dtype=torch.float64)).requires_grad_()
    function(torch.cov(rows.T)).backward()
    assert rows.grad.isfinite().all()


def test_what_is_not_finite_gives_nan_by_products():
    for wrong in (torch.nan, torch.inf):
        matrix = covariance(9, 3)
        matrix[1, 1] = wrong
        assert root_trace_by_products(matrix).isnan()
