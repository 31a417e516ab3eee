import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tokenizer import VQTokenizer
from tokenizer.functional.von_mises_fisher import kl_to_uniform
from tokenizer.quantizers import make_quantizer

CHANNELS = {"vae": 8, "hyperspherical_vae": 5}


def make(name, dim=4, **options):
    return make_quantizer(name, 7, dim, options)


@pytest.fixture(params=sorted(CHANNELS))
def name(request):
    return request.param


def make_encoder_output(name, batch=3, dtype=torch.float32):
    return torch.randn(batch, CHANNELS[name], 2, 5, dtype=dtype, requires_grad=True)


def test_there_are_no_codes(name):
    quantizer, encoder_output = make(name), make_encoder_output(name)
    out = quantizer(encoder_output)
    assert quantizer.depth == 0 and out.codes is None and out.counts is None and out.sampled is None
    message = f"quantizer '{name}' is continuous: it has no codes; take encode.images..latents and decode.latents."
    for call in (
        lambda: quantizer.codebook,
        lambda: quantizer.encode(quantizer.latents(encoder_output)),
        lambda: quantizer.lookup(torch.zeros(1, 2, 2, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    quantizer.after_update(encoder_output, None)
    assert quantizer.step == 1 and quantizer.diagnostics() == {}


def test_a_tokenizer_decodes_latents_and_refuses_codes(name, tmp_path):
    model = VQTokenizer(1, 16, codebook_dim=4, hidden_channels=8, quantizer=name).eval()
    images = torch.randn(2, 1, 16, 16)
    latents = model.encode(images).latents
    assert latents.shape == (2, *model.latent_shape) == (2, 4, 4, 4) and not model.has_codes
    torch.testing.assert_close(model.decode(latents).sample, model(images).reconstruction)
    for call in (lambda: model.encode_codes(images), lambda: model.decode_codes(torch.zeros(1, 4, 4).long())):
        with pytest.raises(ValueError, match=f"'{name}' is continuous"):
            call()
    model.save_pretrained(tmp_path)
    assert torch.equal(
        VQTokenizer.from_pretrained(tmp_path).eval()(images).reconstruction, model(images).reconstruction
    )


def test_evaluation_draws_nothing_and_takes_the_latents(name):
    quantizer, encoder_output = make(name).eval(), make_encoder_output(name)
    state = torch.get_rng_state()
    out = quantizer(encoder_output)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(out.quantized, quantizer.latents(encoder_output))
    torch.testing.assert_close(quantizer.quantize_latents(quantizer.latents(encoder_output)), out.quantized)


def test_any_split_of_the_batch_draws_alike(name):
    quantizer, encoder_output = make(name), make_encoder_output(name, 5)
    quantizer.seed_noise(3, 10)
    whole = quantizer(encoder_output)
    parts, losses = [], []
    for first, last in ((0, 1), (1, 3), (3, 5)):
        quantizer.seed_noise(3, 10 + first)
        part = quantizer(encoder_output[first:last])
        parts.append(part.quantized)
        losses.append(part.losses["kl"] * (last - first))
    assert torch.equal(torch.cat(parts), whole.quantized)
    torch.testing.assert_close(sum(losses) / 5, whole.losses["kl"])
    assert not torch.equal(whole.quantized, quantizer.latents(encoder_output))


def test_the_weight_of_the_divergence(name):
    assert make(name).loss_weights() == {"kl": 1} and make(name, kl_weight=0.5).loss_weights() == {"kl": 0.5}


def test_the_divergence_of_the_vae_and_its_gradient_equal_the_definition():
    encoder_output = make_encoder_output("vae", dtype=torch.float64)
    loss = make("vae")(encoder_output).losses["kl"]
    expected = (
        kl_divergence(Normal(encoder_output[:, :4], (encoder_output[:, 4:] / 2).exp()), Normal(0.0, 1.0)).sum() / 3
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, encoder_output)[0] for value in (loss, expected)), rtol=1e-10, atol=0
    )


def test_the_divergence_of_the_hyperspherical_vae_equals_the_definition():
    encoder_output = make_encoder_output("hyperspherical_vae", dtype=torch.float64)
    quantizer = make("hyperspherical_vae")
    loss = quantizer(encoder_output).losses["kl"]
    kappa = (1 + encoder_output[:, 4].exp()).log() + 1
    expected = kl_to_uniform(kappa, 4).sum() / 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, encoder_output)[0] for value in (loss, expected)), rtol=1e-10, atol=0
    )


def test_the_sample_of_the_vae_is_normal_with_its_own_gradient():
    encoder_output = torch.tensor([1.0, -1.0, 0.0, 2.0, -1.0, 0.0, 1.0, -40.0], dtype=torch.float64)
    encoder_output = encoder_output.reshape(1, 8, 1, 1).expand(1, 8, 100, 100).clone().requires_grad_()
    taken = make("vae")(encoder_output).quantized
    deviation = (encoder_output[:, 4:].detach().clamp(-30, 20) / 2).exp()
    noise = (taken.detach() - encoder_output[:, :4].detach()) / deviation
    assert noise.mean(dim=(0, 2, 3)).abs().max() < 0.05 and (noise.std(dim=(0, 2, 3)) - 1).abs().max() < 0.03
    (gradient,) = torch.autograd.grad(taken.sum(), encoder_output)
    expected = noise * deviation / 2
    expected[:, 3] = 0  # beyond the range
    assert (gradient[:, :4] == 1).all()
    torch.testing.assert_close(gradient[:, 4:], expected, rtol=1e-5, atol=1e-12)


def test_the_hyperspherical_latents_are_directions_and_its_samples_are_closer_to_them_the_larger_kappa():
    quantizer, cosines = make("hyperspherical_vae"), []
    for head in (-5.0, 3.0, 30.0, 1e6):
        encoder_output = torch.randn(2, 5, 20, 20) * 7
        encoder_output[:, 4] = head
        latents, taken = quantizer.latents(encoder_output), quantizer(encoder_output).quantized
        for directions in (latents, taken, quantizer.quantize_latents(latents * 3)):
            torch.testing.assert_close(directions.norm(dim=1), torch.ones(2, 20, 20))
        cosines.append((latents * taken).sum(dim=1).mean().item())
    assert cosines == sorted(cosines) and cosines[0] > 0.1 and cosines[-1] > 0.99999


def test_the_hyperspherical_sample_sends_gradients_to_mean_and_concentration():
    encoder_output = make_encoder_output("hyperspherical_vae")
    weight = torch.randn(3, 4, 2, 5)
    (make("hyperspherical_vae")(encoder_output).quantized * weight).sum().backward()
    gradient = encoder_output.grad
    assert (gradient[:, :4].norm(dim=1) > 0).all() and (gradient[:, 4] != 0).all()
    # The length of the head decides nothing.
    assert (gradient[:, :4] * encoder_output.detach()[:, :4]).sum(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["zero", "one token", "equal", "large", "very negative"])
def test_nothing_becomes_nan(name, case, training):
    quantizer = make(name).train(training)
    encoder_output = make_encoder_output(name).detach()
    if case == "one token":
        encoder_output = encoder_output[:1, :, :1, :1].clone()
    elif case == "equal":
        encoder_output[:] = encoder_output[:1, :, :1, :1]
    else:
        encoder_output *= {"zero": 0, "large": 1e6, "very negative": -1e6}[case]
    encoder_output.requires_grad_()
    out = quantizer(encoder_output)
    (out.losses["kl"] + out.quantized.square().sum()).backward()
    assert out.losses["kl"].isfinite() and out.quantized.isfinite().all() and encoder_output.grad.isfinite().all()


def test_half_precision_is_computed_in_float32(name):
    quantizer, encoder_output = make(name).eval(), make_encoder_output(name).detach().bfloat16()
    expected = quantizer(encoder_output.float())
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(encoder_output)
    assert out.quantized.dtype == quantizer.latents(encoder_output).dtype == torch.bfloat16
    assert torch.equal(out.losses["kl"], expected.losses["kl"]) and out.losses["kl"].dtype == torch.float32
    assert torch.equal(out.quantized, expected.quantized.bfloat16())
    assert torch.equal(quantizer.latents(encoder_output), out.quantized)


def test_a_sphere_of_two_points_is_refused():
    with pytest.raises(ValueError, match=r"set model.codebook_dim to 2 or more, got 1"):
        make("hyperspherical_vae", dim=1)
    assert make("vae", dim=1).eval()(torch.randn(1, 2, 2, 2)).quantized.shape == (1, 1, 2, 2)
