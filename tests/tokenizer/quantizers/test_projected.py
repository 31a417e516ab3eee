"""SimVQ and VQGAN-LC: codebooks that are a frozen table behind a learned linear layer."""

import pytest
import torch

from tokenizer import VQTokenizer
from tokenizer.quantizers import make_quantizer

WEIGHTS = {"simvq": (1.0, 0.25), "lc": (0.33, 1.0)}


def make(name, codes=12, dim=6, **options):
    return make_quantizer(name, codes, dim, ({"feature_dim": 9} if name == "lc" else {}) | options)


@pytest.fixture(params=WEIGHTS)
def name(request):
    return request.param


@pytest.mark.parametrize("bias", [True, False])
def test_codes_loss_and_gradients_are_those_of_the_projected_table(name, bias):
    quantizer = make(name, bias=bias).double()
    encoder_output = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    parameters = [encoder_output, *quantizer.projector.parameters()]
    of_codebook, of_commitment = WEIGHTS[name]

    tokens = encoder_output.permute(0, 2, 3, 1).flatten(0, 2)
    offset = quantizer.projector.bias if bias else 0
    rows = torch.stack([quantizer.projector.weight @ row + offset for row in quantizer.table])
    codes = torch.stack([(rows - token).square().sum(dim=1).argmin() for token in tokens])
    q = rows[codes]
    expected = ((tokens + (q - tokens).detach()) * pull.permute(0, 2, 3, 1).flatten(0, 2)).sum()
    expected = expected + of_codebook * (q - tokens.detach()).square().mean()
    expected = expected + of_commitment * (q.detach() - tokens).square().mean()
    at_plain = torch.autograd.grad(expected, parameters)

    out, weights = quantizer(encoder_output), quantizer.loss_weights()
    assert torch.equal(out.codes.flatten(), codes) and len(codes.unique()) > 2
    loss = (out.quantized * pull).sum() + sum(weights[term] * value for term, value in out.losses.items())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert len(parameters) == 2 + bias
    for found, plain in zip(torch.autograd.grad(loss, parameters), at_plain, strict=True):
        assert plain.abs().max() > 1e-6
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


def test_tables_and_projectors_start_as_published():
    simvq, lc = make("simvq", 4000, 64), make("lc", 4000, 16, feature_dim=100)
    assert simvq.table.std().item() == pytest.approx(64**-0.5, rel=0.02)
    assert lc.projector.weight.std().item() == pytest.approx(16**-0.5, rel=0.05)
    assert lc.table.norm(dim=1).mean().item() == pytest.approx(1, rel=0.02)
    assert make_quantizer("lc", 2, 4, {}).table.shape == (2, 768)


def test_an_optimiser_moves_the_whole_codebook_and_not_the_table(name):
    quantizer = make(name)
    table, codebook = quantizer.table.detach().clone(), quantizer.codebook.detach()
    optimizer = torch.optim.AdamW(quantizer.parameters(), 0.1, weight_decay=0.1)
    sum(quantizer(torch.randn(1, 6, 1, 1)).losses.values()).backward()  # one token: one code is used
    optimizer.step()
    assert torch.equal(quantizer.table, table)
    assert ((quantizer.codebook - codebook).abs().amax(dim=1) > 0).all()


@torch.no_grad()
def test_saved_and_loaded_codes_are_looked_up_through_the_projection(name, tmp_path):
    options = {"feature_dim": 9} if name == "lc" else {}
    sizes = {"codebook_size": 20, "codebook_dim": 4, "hidden_channels": 8}
    tokenizer = VQTokenizer(1, 8, quantizer=name, quantizer_options=options, **sizes).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path).eval()
    quantizer = loaded.bottleneck
    assert not quantizer.table.requires_grad and quantizer.projector.weight.requires_grad
    assert torch.equal(quantizer.table, tokenizer.bottleneck.table)
    images = torch.randn(3, 1, 8, 8)
    codes = loaded.encode_codes(images)
    expected = torch.nn.functional.linear(quantizer.table, quantizer.projector.weight, quantizer.projector.bias)
    assert torch.equal(loaded.codebook, expected)
    assert torch.equal(quantizer.lookup(codes), expected[codes].permute(0, 3, 1, 2))
    assert torch.equal(loaded.decode_codes(codes), tokenizer(images).reconstruction)
    assert torch.equal(loaded.decode(loaded.encode(images).latents).sample, loaded.decode_codes(codes))


def test_computes_in_float32_under_autocast(name):
    quantizer = make(name, 200)
    latents = torch.randn(4, 6, 8, 8)
    expected, codebook = quantizer(latents), quantizer.codebook
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(latents)
        assert torch.equal(out.codes, expected.codes) and torch.equal(quantizer.codebook, codebook)
        assert torch.equal(quantizer.lookup(out.codes), expected.quantized)


@pytest.mark.parametrize(("codes", "dim"), [(2, 1), (100_000, 2)])
@pytest.mark.parametrize("case", ["one", "equal", "zero"])
def test_degenerate_batches_and_tables_stay_finite(name, codes, dim, case):
    quantizer = make(name, codes, dim)
    encoder_output = torch.randn(1, dim, 1, 1).repeat(1, 1, 1, 1 if case == "one" else 3) * (case != "zero")
    encoder_output.requires_grad_()
    out = quantizer(encoder_output)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    gradients = [encoder_output.grad, *(parameter.grad for parameter in quantizer.projector.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(quantizer.encode(encoder_output), out.codes)


def test_features_are_taken_as_the_table_or_refused():
    quantizer = make("lc")
    quantizer.load_features(features := torch.randn(12, 9, dtype=torch.float64))
    assert torch.equal(quantizer.table, features.float()) and not quantizer.table.requires_grad
    with pytest.raises(ValueError, match=r"the features are \(12, 8\), the quantizer's table is \(12, 9\); set model"):
        quantizer.load_features(torch.randn(12, 8))
    with pytest.raises(ValueError, match="feature_dim must be at least 1, got 0"):
        make("lc", feature_dim=0)


def test_the_loss_weight_scales_both_losses():
    weights = make("lc", loss_weight=0.1).loss_weights()
    assert weights == pytest.approx({"codebook": 0.033, "commitment": 0.1})
