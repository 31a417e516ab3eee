import torch

from tokenizer.functional.unit_vectors import directions_and_lengths, unit_vectors

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
