import pytest
import torch

from tokenizer.functional.root_trace import root_trace


def covariance(rows, dim, dtype=torch.float64):
    return torch.cov(torch.randn(rows, dim, dtype=dtype).mul(torch.linspace(0.1, 3, dim, dtype=dtype)).T)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
@pytest.mark.parametrize("dim", [2, 5, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
def test_value_and_gradient_are_those_of_the_eigenvalues(dim, scale, dtype, tolerance):
    matrix = (covariance(1000, dim) * scale).requires_grad_()
    value = root_trace(matrix.to(dtype))
    expected = torch.linalg.eigvalsh(matrix).sqrt().sum()
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=0)
    found, wanted = (torch.autograd.grad(result, matrix)[0] for result in (value, expected))
    assert (found - wanted).norm() < 10 * tolerance * wanted.norm()


def test_directions_without_variance_have_a_finite_gradient():
    rows = torch.randn(3, 6, requires_grad=True)
    centred = rows - rows.mean(dim=0)
    value = root_trace(centred.T @ centred / 2)
    value.backward()
    singular = torch.linalg.svdvals(centred.detach().double() / 2**0.5)
    assert value.item() == pytest.approx(singular.sum().item(), rel=0.01) and rows.grad.isfinite().all()
    zero = torch.zeros(4, 4, requires_grad=True)
    root_trace(zero).backward()
    assert zero.grad.isfinite().all()


def test_variances_below_the_smallest_normal_number_give_finite_values():
    rows = (1e-20 * torch.randn(3, 16)).requires_grad_()
    value = root_trace(rows.T @ rows / 2)
    value.backward()
    assert 0 < value < 1e-15 and rows.grad.isfinite().all()


def test_what_is_not_finite_gives_nan():
    for wrong in (torch.nan, torch.inf):
        matrix = covariance(9, 3)
        matrix[1, 1] = wrong
        assert root_trace(matrix).isnan()
