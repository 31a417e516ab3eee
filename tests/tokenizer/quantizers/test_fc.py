import pytest
import torch

from tokenizer.quantizers import make_quantizer


def make(codes=12, dim=6, **options):
    return make_quantizer("fc", codes, dim, options)


def plain(encoder_output, table, weight, beta):
    """Codes and loss by the definition, token by token: (B, D, h, w), (K, D), (B, D, h, w)."""
    e = table / table.square().sum(dim=1, keepdim=True).sqrt()
    z = encoder_output / encoder_output.square().sum(dim=1, keepdim=True).sqrt()
    tokens, weights = (values.permute(0, 2, 3, 1).flatten(0, 2) for values in (z, weight))
    codes, passed, codebook, commitment = [], 0, 0, 0
    for token, pull in zip(tokens, weights, strict=True):
        codes.append(min(range(len(e)), key=lambda k: (token - e[k]).square().sum().item()))
        q = e[codes[-1]]
        passed = passed + ((token + (q - token).detach()) * pull).sum()
        codebook = codebook + (q - token.detach()).square().sum() / tokens.numel()
        commitment = commitment + (q.detach() - token).square().sum() / tokens.numel()
    return torch.tensor(codes), passed + codebook + beta * commitment


@pytest.mark.parametrize("beta", [0.25, 0.7])
def test_codes_loss_and_gradients_are_those_of_the_normalised_vectors(beta):
    quantizer = make(beta=beta).double()
    quantizer.table.data *= torch.rand(12, 1, dtype=torch.float64) * 5 + 0.1
    encoder_output = (torch.randn(2, 6, 3, 4, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    codes, expected = plain(encoder_output, quantizer.table, weight, beta)
    at_moments, at_table = torch.autograd.grad(expected, [encoder_output, quantizer.table])

    out, weights = quantizer(encoder_output), quantizer.loss_weights()
    assert torch.equal(out.codes.flatten(), codes)
    loss = (out.quantized * weight).sum() + sum(weights[name] * value for name, value in out.losses.items())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    found = torch.autograd.grad(loss, [encoder_output, quantizer.table])
    torch.testing.assert_close(found[0], at_moments, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], at_table, rtol=1e-9, atol=1e-12)
    # Of directions alone: no gradient along the vectors.
    assert (found[0] * encoder_output).sum(dim=1).abs().max() < 1e-12
    assert (found[1] * quantizer.table).sum(dim=1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ways_in_agree_and_lengths_count_nowhere(dtype):
    quantizer = make(200, 8).eval()
    encoder_output = (torch.randn(4, 8, 6, 6) * 7).to(dtype)
    out, latents = quantizer(encoder_output), quantizer.latents(encoder_output)
    assert torch.equal(quantizer.encode(latents), out.codes)
    assert torch.equal(quantizer.lookup(out.codes).to(dtype), out.quantized)
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(4, 6, 6))
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(200))
    assert torch.equal(quantizer.encode(latents * 4), out.codes)
    with torch.no_grad():
        quantizer.table *= 8
    assert torch.equal(quantizer(encoder_output).quantized, out.quantized)


def test_snapped_latents_are_rows_of_length_one_with_the_gradient_straight_through():
    quantizer = make()
    latents = torch.randn(1, 6, 2, 2, requires_grad=True)
    weight = torch.randn(1, 6, 2, 2)
    snapped = quantizer.quantize_latents(latents)
    torch.testing.assert_close(snapped.norm(dim=1), torch.ones(1, 2, 2))
    (snapped * weight).sum().backward()
    assert torch.equal(latents.grad, weight)


@pytest.mark.parametrize("init", ["unit", "uniform", "normal"])
@pytest.mark.parametrize(("codes", "dim"), [(2, 1), (2, 3), (7, 1)])
@pytest.mark.parametrize("case", ["one", "equal", "zero", "huge", "tiny", "a zero row"])
def test_degenerate_batches_and_tables_stay_finite(init, codes, dim, case):
    quantizer = make(codes, dim, init=init)
    encoder_output = torch.randn(1, dim, 1, 1) if case == "one" else torch.randn(1, dim, 1, 1).repeat(2, 1, 2, 2)
    encoder_output *= {"zero": 0, "huge": 1e30, "tiny": 1e-30}.get(case, 1)
    if case == "a zero row":
        quantizer.table.data[0] = 0
    encoder_output.requires_grad_()
    out = quantizer(encoder_output)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    assert (
        out.quantized.isfinite().all()
        and encoder_output.grad.isfinite().all()
        and quantizer.table.grad.isfinite().all()
    )
    if case == "zero":
        assert not out.codes.any() and not quantizer.latents(encoder_output).any()
