import pytest
import torch
from torch.nn.functional import embedding, mse_loss

from tokenizer.functional.straight_through import CodebookLookup, straight_through


def plainly(tokens, codebook, codes):
    rows = embedding(codes, codebook)
    quantized = tokens + (rows - tokens).detach()
    return quantized, mse_loss(rows, tokens.detach()), mse_loss(rows.detach(), tokens)


# More tokens than are taken at a time, and a last part that is shorter.
@pytest.mark.parametrize("tokens", [1, 5, 4096, 9000])
def test_values_and_gradients_are_those_of_the_plain_formula(tokens):
    inputs = torch.randn(tokens, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    codes = torch.randint(0, 7, (tokens,))
    weights = torch.randn(tokens, 3, dtype=torch.float64), 0.7, 0.3
    results = []
    for function in (CodebookLookup.apply, plainly):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = function(*leaves, codes)
        sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True)).backward()
        results.append([*outputs, *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_each_output_trains_its_own_side():
    for output, sides in ((0, (True, False)), (1, (False, True)), (2, (True, False))):
        leaves = torch.randn(9, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
        CodebookLookup.apply(*leaves, torch.arange(7).repeat(2)[:9])[output].sum().backward()
        assert tuple(leaf.grad is not None for leaf in leaves) == sides


def test_a_second_derivative_of_a_loss_is_refused_and_that_of_the_rows_is_the_identitys():
    tokens, codebook = torch.randn(9, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    rows, codebook_loss, commitment_loss = CodebookLookup.apply(tokens, codebook, torch.zeros(9, dtype=torch.int64))
    for loss, leaf in ((codebook_loss, codebook), (commitment_loss, tokens)):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(loss, leaf, create_graph=True)
    (gradient,) = torch.autograd.grad((rows**3).sum(), tokens, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), tokens)
    torch.testing.assert_close(second, 6 * rows.detach())


def test_the_gradient_that_comes_in_is_left_as_it_is():
    tokens, codebook = torch.randn(9, 3, requires_grad=True), torch.randn(7, 3)
    rows, _, commitment = CodebookLookup.apply(tokens, codebook, torch.zeros(9, dtype=torch.int64))
    gradient = torch.randn(9, 3)
    before = gradient.clone()
    torch.autograd.backward([rows, commitment], [gradient, None])
    assert torch.equal(gradient, before) and not torch.equal(tokens.grad, gradient)


def test_straight_through_has_the_value_of_the_rows_and_the_gradient_of_the_latents():
    rows, latents = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4)
    out = straight_through(rows, latents)
    (out * weight).sum().backward()
    assert torch.equal(out, rows) and torch.equal(latents.grad, weight) and rows.grad is None
