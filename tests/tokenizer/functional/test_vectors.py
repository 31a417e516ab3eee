import pytest
import torch

from tokenizer.functional.vectors import directions_and_lengths, inner_products, unit_vectors

VECTORS = torch.tensor([[3.0, 4.0], [3e-38, 4e-38], [3e37, -4e37], [0.0, 0.0]])


def test_unit_vectors_of_any_length():
    expected = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, -0.8], [0.0, 0.0]])
    torch.testing.assert_close(unit_vectors(VECTORS), expected, rtol=1e-6, atol=0)


def test_lengths_are_those_taken_and_1_for_a_zero_row():
    directions, lengths = directions_and_lengths(VECTORS)
    assert torch.equal(directions, unit_vectors(VECTORS))
    torch.testing.assert_close(lengths, torch.tensor([[5.0], [5e-38], [5e37], [1.0]]), rtol=1e-6, atol=0)


def test_the_gradient_is_along_the_sphere_and_finite_for_a_zero_row():
    vectors = torch.randn(6, 3, dtype=torch.float64)
    vectors[0] = 0
    vectors.requires_grad_()
    assert torch.autograd.gradcheck(unit_vectors, [vectors[1:]])
    unit_vectors(vectors).sum().backward()
    assert vectors.grad.isfinite().all()
    assert (vectors.grad * vectors)[1:].sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "columns", "dim"), [(1, 1, 1), (1, 5, 3), (7, 1, 4), (5, 6, 1), (300, 40, 17)])
def test_inner_products_equal_the_matrix_product(rows, columns, dim, bias, dtype):
    a, b = torch.randn(rows, dim, dtype=dtype), torch.randn(columns, dim, dtype=dtype)
    c = torch.randn(columns, dtype=dtype) if bias else None
    expected = a.double() @ b.double().T + (0 if c is None else c.double())
    found = inner_products(a, b, c)
    assert found.shape == (rows, columns) and found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)


def test_inner_products_take_operands_of_any_layout():
    a, b = torch.randn(9, 12).T, torch.randn(8, 18)[:, ::2]
    found = inner_products(a, b)
    torch.testing.assert_close(found, a @ b.T)
    assert found.is_contiguous()


def test_inner_products_of_no_rows_and_no_columns():
    assert inner_products(torch.randn(4, 3), torch.randn(0, 3)).shape == (4, 0)
    assert inner_products(torch.randn(0, 3), torch.randn(4, 3)).shape == (0, 4)
    # A product over nothing is a sum of no terms.
    assert torch.equal(inner_products(torch.randn(4, 0), torch.randn(5, 0)), torch.zeros(4, 5))
