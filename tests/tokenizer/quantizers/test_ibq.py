import pytest
import torch

from tokenizer.quantizers import ibq, make_quantizer


def make(codes=7, dim=3, **options):
    torch.manual_seed(0)
    return make_quantizer("ibq", codes, dim, options).double()


def by_definition(tokens, codebook, beta, entropy_weight, temperature):
    """Value, and the weighted loss, from the equations with loops over tokens."""
    quantized, terms, sharp = [], [], []
    for token in tokens:
        products = torch.stack([token @ row for row in codebook])
        p = products.softmax(dim=0)
        hard = torch.zeros_like(p)
        hard[products.argmax()] = 1
        index = hard + p - p.detach()
        q, row = index @ codebook, codebook[products.argmax()]
        quantized.append(q)
        terms.append(
            (q - token).square().mean()
            + beta * (row - token.detach()).square().mean()
            + (row.detach() - token).square().mean()
        )
        sharp.append((products / temperature).softmax(dim=0))
    mean = sum(sharp) / len(sharp)
    entropy = sum(-(p * p.log()).sum() for p in sharp) / len(sharp) + (mean * mean.log()).sum()
    return torch.stack(quantized), sum(terms) / len(terms) + entropy_weight * entropy


def test_value_losses_and_gradients_are_those_of_the_definition():
    quantizer = make(beta=0.3, entropy_weight=0.2, entropy_temperature=0.5)
    tokens = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(8, 3, dtype=torch.float64)
    quantized, expected = by_definition(tokens, quantizer.codebook, 0.3, 0.2, 0.5)
    expected = expected + (quantized * weights).sum()
    gradients = torch.autograd.grad(expected, [tokens, quantizer.codebook])

    output = quantizer(tokens.reshape(2, 2, 2, 3).permute(0, 3, 1, 2))
    found_quantized = output.quantized.permute(0, 2, 3, 1).reshape(8, 3)
    torch.testing.assert_close(found_quantized, quantized, rtol=1e-12, atol=1e-12)
    loss_weights = quantizer.loss_weights()
    found = sum(loss_weights[name] * loss for name, loss in output.losses.items()) + (found_quantized * weights).sum()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(found, [tokens, quantizer.codebook]), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_every_code_gets_a_gradient_through_the_index():
    quantizer = make()
    quantizer(torch.randn(1, 3, 1, 1, dtype=torch.float64)).quantized.sum().backward()
    assert (quantizer.codebook.grad.norm(dim=1) > 0).all()


def test_a_decided_use_of_all_codes_has_the_least_entropy_loss():
    quantizer = make(codes=4, dim=4)
    quantizer.codebook.data = torch.eye(4, dtype=torch.float64)
    losses = {}
    for name, tokens in (("all", torch.eye(4)), ("one", torch.eye(4)[[0, 0, 0, 0]]), ("none", torch.zeros(4, 4))):
        losses[name] = quantizer(tokens.double().T.reshape(1, 4, 2, 2)).losses["entropy"].item()
    assert losses["all"] == pytest.approx(-torch.tensor(4.0).log().item(), abs=1e-6)
    assert losses["one"] == pytest.approx(0, abs=1e-6) and losses["none"] == pytest.approx(0, abs=1e-12)
    assert "entropy" not in make(entropy_weight=0.0)(torch.randn(1, 3, 2, 2)).losses


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="entropy_temperature must be above 0, got 0"):
        make(entropy_temperature=0.0)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.2])
def test_parts_of_the_tokens_make_the_whole(monkeypatch, entropy_weight):
    quantizer = make(entropy_weight=entropy_weight, entropy_temperature=0.5)
    maps = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for entries in (1 << 26, 7 * 4):  # 18 tokens at once, or 4
        monkeypatch.setattr(ibq, "_ENTRIES", entries)
        output = quantizer(maps)
        weights = quantizer.loss_weights()
        loss = sum(weights[name] * value for name, value in output.losses.items()) + output.quantized.pow(3).sum()
        results.append([loss, *torch.autograd.grad(loss, [maps, quantizer.codebook])])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_no_table_of_all_tokens_is_kept(monkeypatch):
    monkeypatch.setattr(ibq, "_ENTRIES", 7 * 4)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    maps = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        make()(maps)
    assert max(kept) < 72 * 7
