"""SQ-VAE's gaussian quantizer, against its definition on plain N x K x D arrays."""

import math

import pytest
import torch

from tokenizer import VQTokenizer
from tokenizer.functional.soft_assignment import code_logits
from tokenizer.quantizers import make_quantizer

MODES = {"scalar": 0, "image": 1, "position": 1, "dimension": 5}
modes = pytest.mark.parametrize("variance", MODES)
K, D, B, H, W = 7, 5, 3, 2, 4


def make(variance="scalar", codes=K, dim=D, **options):
    return make_quantizer("sq", codes, dim, {"variance": variance, **options})


def encoder_output_for(quantizer, *, batch=B, height=H, width=W, dtype=torch.float64):
    return torch.randn(batch, quantizer.encoder_channels, height, width, dtype=dtype)


def oracle(encoder_output, codebook, learned, variance, gumbel, temperature):
    """The definition, token by token and code by code: soft sample, codes, entropy, distance; `gumbel` (B, h w, K)."""
    z, log_variance = encoder_output[:, :D], encoder_output[:, D:]
    if variance == "scalar":
        log_variance = torch.zeros(B, D, H, W, dtype=z.dtype)
    elif variance == "image":
        log_variance = log_variance.sum(dim=(1, 2, 3)).div(H * W).view(B, 1, 1, 1).expand(B, D, H, W)
    else:
        log_variance = log_variance.expand(B, D, H, W)
    precision = 1 / (log_variance.exp() + learned.exp()).clamp(min=1e-10)
    samples, codes, entropy, distance = torch.zeros_like(z), torch.zeros(B, H, W, dtype=torch.int64), 0, 0
    for b in range(B):
        for y in range(H):
            for x in range(W):
                token, prec = z[b, :, y, x], precision[b, :, y, x]
                logits = -0.5 * (prec * (token - codebook) ** 2).sum(dim=1)
                p = torch.softmax(logits, dim=0)
                weights = torch.softmax((logits + gumbel[b, y * W + x]) / temperature, dim=0)
                q = weights @ codebook
                samples[b, :, y, x] = q
                codes[b, y, x] = p.argmax()
                entropy = entropy + (p * p.log()).sum() / B
                distance = distance + 0.5 * (prec * (token - q) ** 2).sum() / B
    return samples, codes, entropy, distance


@modes
def test_sample_losses_and_gradients_are_the_definitions(variance):
    quantizer = make(variance, temperature_decay=0.1).double()
    with torch.no_grad():
        quantizer.log_variance.fill_(-0.3)
    quantizer.step.fill_(4)
    assert quantizer.encoder_channels == D + MODES[variance]
    encoder_output = encoder_output_for(quantizer).requires_grad_()
    codebook, learned = (t.detach().clone().requires_grad_() for t in (quantizer.codebook, quantizer.log_variance))
    quantizer.seed_noise(5, 0)
    gumbel = quantizer.noise(encoder_output).gumbel(torch.empty(B, H * W, K, dtype=torch.float64))
    plain = encoder_output.detach().clone().requires_grad_()
    expected = oracle(plain, codebook, learned, variance, gumbel, math.exp(-0.4))
    found = quantizer(encoder_output)
    assert torch.equal(found.codes, expected[1])
    assert torch.equal(found.counts, torch.bincount(expected[1].flatten(), minlength=K))
    torch.testing.assert_close(found.quantized, expected[0], rtol=1e-10, atol=1e-12)
    pull = torch.randn_like(expected[0])
    scalars = [(found.quantized * pull).sum(), found.losses["entropy"], found.losses["distance"]]
    plain_scalars = [(expected[0] * pull).sum(), *expected[2:]]
    ours, theirs = [encoder_output, quantizer.codebook, quantizer.log_variance], [plain, codebook, learned]
    for scalar, plain_scalar in zip(scalars, plain_scalars, strict=True):
        torch.testing.assert_close(scalar, plain_scalar, rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(scalar, ours, retain_graph=True)
        for gradient, other in zip(
            gradients, torch.autograd.grad(plain_scalar, theirs, retain_graph=True), strict=True
        ):
            assert other.norm() > 1e-6
            torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)


@modes
def test_evaluation_takes_the_likeliest_code(variance):
    quantizer = make(variance).eval()
    encoder_output = encoder_output_for(quantizer, dtype=torch.float32)
    state = torch.get_rng_state()
    out, latents = quantizer(encoder_output), quantizer.latents(encoder_output)
    assert torch.equal(torch.get_rng_state(), state)
    assert latents.shape == (B, quantizer.latent_channels, H, W)
    assert torch.equal(out.codes, quantizer.encode(latents))
    assert torch.equal(out.quantized, quantizer.lookup(out.codes))
    assert torch.equal(quantizer.quantize_latents(latents), out.quantized)
    weights = torch.ones(B, D, H, W, dtype=torch.float64)
    if variance == "dimension":
        weights = 1 / (encoder_output[:, D:].double().exp() + quantizer.log_variance.double().exp())
    z, rows = encoder_output[:, :D].double(), quantizer.codebook.double()
    distances = (weights[:, None] * (z[:, None] - rows[None, :, :, None, None]) ** 2).sum(dim=2)  # (B, K, h, w)
    assert torch.equal(out.codes, distances.argmin(dim=1))


def test_the_variance_of_each_dimension_decides():
    quantizer = make("dimension", codes=2, dim=2)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        quantizer.log_variance.fill_(-20)
    latents = torch.tensor([1.0, 2.0, 0.0, 5.0]).view(1, 4, 1, 1)  # sure of the first dimension
    assert quantizer.encode(latents) == 0
    latents = torch.tensor([1.0, 2.0, 5.0, 0.0]).view(1, 4, 1, 1)
    assert quantizer.encode(latents) == 1


@modes
def test_the_straight_through_gradient_of_evaluation_is_that_of_the_means(variance):
    quantizer = make(variance).eval()
    encoder_output = encoder_output_for(quantizer).requires_grad_()
    pull = torch.randn(B, D, H, W, dtype=torch.float64)
    for give in (lambda m: quantizer(m).quantized, lambda m: quantizer.quantize_latents(quantizer.latents(m))):
        (gradient,) = torch.autograd.grad((give(encoder_output) * pull).sum(), encoder_output)
        assert torch.equal(gradient[:, :D], pull) and not gradient[:, D:].any()


def test_the_temperature_decays_and_never_becomes_zero():
    quantizer = make()
    for step, expected in ((0, 1.0), (1000, math.exp(-0.01)), (10**5, math.exp(-1)), (10**9, 1e-6)):
        quantizer.step.fill_(step)
        assert quantizer.temperature.item() == pytest.approx(expected, rel=1e-12)
    encoder_output = encoder_output_for(quantizer, dtype=torch.float32).requires_grad_()
    out = quantizer(encoder_output)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    assert encoder_output.grad.isfinite().all()
    # It is a one-hot sample then: of the table's rows.
    tokens = out.quantized.detach().permute(0, 2, 3, 1).reshape(-1, D)
    assert torch.cdist(tokens, quantizer.codebook.detach()).amin(dim=1).max() < 1e-4


@modes
def test_samples_do_not_depend_on_the_split(variance):
    quantizer = make(variance)
    encoder_output = encoder_output_for(quantizer, batch=4)
    quantizer.seed_noise(3, 0)
    whole = quantizer(encoder_output)
    means = {"entropy": 0, "distance": 0}
    for index, part in enumerate(encoder_output.chunk(2)):
        quantizer.seed_noise(3, 2 * index)
        out = quantizer(part)
        torch.testing.assert_close(out.quantized, whole.quantized.chunk(2)[index], rtol=1e-12, atol=1e-13)
        means = {name: mean + out.losses[name] / 2 for name, mean in means.items()}
    torch.testing.assert_close(means, whole.losses, rtol=1e-12, atol=0)
    quantizer.seed_noise(4, 0)
    assert (quantizer(encoder_output).quantized - whole.quantized).abs().max() > 0.1


@modes
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["one token", "equal", "zero", "sure", "unsure", "two codes", "one dimension"])
def test_degenerate_inputs_give_finite_values_and_gradients(variance, training, case):
    codes, dim = 2 if case == "two codes" else K, 1 if case == "one dimension" else D
    quantizer = make(variance, codes, dim).train(training)
    encoder_output = encoder_output_for(quantizer, dtype=torch.float32)
    if case == "one token":
        encoder_output = encoder_output[:1, :, :1, :1].clone()
    elif case in ("equal", "zero"):
        encoder_output[:] = case == "equal"
    elif case in ("sure", "unsure"):
        with torch.no_grad():
            quantizer.log_variance.fill_(-200 if case == "sure" else 200)
        encoder_output[:, dim:] = -200 if case == "sure" else 200
    encoder_output.requires_grad_()
    out = quantizer(encoder_output)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    tensors = [out.quantized, *out.losses.values(), encoder_output.grad, *(p.grad for p in quantizer.parameters())]
    assert all(tensor.isfinite().all() for tensor in tensors if tensor is not None)


def test_no_variance_is_below_its_smallest():
    quantizer = make("position", dim=1, codes=1)
    with torch.no_grad():
        quantizer.log_variance.fill_(-60)
        quantizer.codebook.zero_()
    encoder_output = torch.tensor([1.0, -60.0]).view(1, 2, 1, 1)
    assert quantizer.eval()(encoder_output).losses["distance"].item() == pytest.approx(0.5e10, rel=1e-5)


@pytest.mark.parametrize("per_dimension", [False, True])
def test_float32_logits_of_a_table_far_from_the_origin(per_dimension):
    table = torch.randn(50, 16) + 100
    tokens = torch.randn(30, 16) + 100
    precision = 100 * torch.rand(30, 16 if per_dimension else 1)
    plain = -0.5 * (precision.double()[:, None] * (tokens.double()[:, None] - table.double()) ** 2).sum(dim=2)
    found = code_logits(tokens, precision, table).double()
    error = torch.log_softmax(found, dim=1) - torch.log_softmax(plain, dim=1)
    assert error.abs().max() < 1e-2  # of differences of thousands; around the origin it would be 100


def test_many_codes():
    quantizer = make(codes=100_000)
    encoder_output = torch.randn(1, D, 1, 3, requires_grad=True)
    out = quantizer(encoder_output)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    assert encoder_output.grad.isfinite().all() and quantizer.codebook.grad.isfinite().all()
    assert torch.equal(quantizer.eval()(encoder_output).codes, out.codes)


@modes
def test_saved_and_loaded_it_gives_the_same_codes(variance, tmp_path):
    options = {"variance": variance}
    tokenizer = VQTokenizer(
        1, 8, quantizer="sq", codebook_size=K, codebook_dim=D, hidden_channels=8, quantizer_options=options
    ).eval()
    with torch.no_grad():
        tokenizer.bottleneck.log_variance.fill_(-1)
    images = 2 * torch.rand(3, 1, 8, 8) - 1
    tokenizer.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path).eval()
    codes = tokenizer.encode_codes(images)
    assert torch.equal(loaded.encode_codes(images), codes)
    assert loaded.bottleneck.log_variance == -1
    latents = tokenizer.encode(images).latents
    assert latents.shape[1:] == tokenizer.latent_shape
    assert torch.equal(loaded.decode(latents).sample, tokenizer.decode_codes(codes))
    assert torch.equal(tokenizer(images).reconstruction, tokenizer.decode_codes(codes))


def test_the_published_start_and_weights():
    quantizer = make(codes=2000)
    assert quantizer.log_variance.item() == pytest.approx(math.log(20))
    assert quantizer.codebook.std().item() == pytest.approx(1, abs=0.05)
    assert quantizer.loss_weights() == {"entropy": 1, "distance": 1}
    for initial in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="initial_variance must be"):
            make(initial_variance=initial)
