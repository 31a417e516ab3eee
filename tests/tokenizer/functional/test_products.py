import pytest
import torch

from tokenizer.functional.products import inner_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "columns", "dim"), [(1, 1, 1), (1, 5, 3), (7, 1, 4), (5, 6, 1), (300, 40, 17)])
def test_equals_the_matrix_product(rows, columns, dim, bias, dtype):
    a, b = torch.randn(rows, dim, dtype=dtype), torch.randn(columns, dim, dtype=dtype)
    c = torch.randn(columns, dtype=dtype) if bias else None
    expected = a.double() @ b.double().T + (0 if c is None else c.double())
    found = inner_products(a, b, c)
    assert found.shape == (rows, columns) and found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)


def test_takes_operands_of_any_layout():
    a, b = torch.randn(9, 12).T, torch.randn(8, 18)[:, ::2]
    found = inner_products(a, b)
    torch.testing.assert_close(found, a @ b.T)
    assert found.is_contiguous()


def test_no_rows_and_no_columns():
    assert inner_products(torch.randn(4, 3), torch.randn(0, 3)).shape == (4, 0)
    assert inner_products(torch.randn(0, 3), torch.randn(4, 3)).shape == (0, 4)
    # A product over nothing is a sum of no terms.
    assert torch.equal(inner_products(torch.randn(4, 0), torch.randn(5, 0)), torch.zeros(4, 5))
