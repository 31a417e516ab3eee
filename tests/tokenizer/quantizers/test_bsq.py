"""Binary spherical quantization: lengths, the nearest of all codes, and both entropies as they are approximated."""

from itertools import product

import pytest
import torch

from tokenizer.quantizers import make_quantizer

DIM = 5


def make(**options):
    return make_quantizer("bsq", 2**DIM, DIM, options).double()


def latents_of():
    return torch.randn(4, DIM, 2, 3, dtype=torch.float64)


def as_tokens(maps):
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def entropy(p):
    return -(p * p.log()).sum(dim=-1)


def test_codes_have_length_1_and_are_the_nearest_for_latents_of_any_length():
    quantizer, latents = make(), latents_of()
    lengths = 0.01 + 100 * torch.rand(4, 1, 2, 3, dtype=torch.float64)
    out = quantizer(latents * lengths)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(2**DIM, dtype=torch.float64))
    units = as_tokens(latents / latents.norm(dim=1, keepdim=True))
    assert torch.equal(out.codes.flatten(), torch.cdist(units, quantizer.codebook).argmin(dim=1))
    assert torch.equal(as_tokens(out.quantized), quantizer.codebook[out.codes.flatten()])
    torch.testing.assert_close(as_tokens(quantizer.latents(latents * lengths)), units)


def test_every_code_is_that_of_its_own_row():
    quantizer, codes = make(), torch.arange(2**DIM).view(2, 4, 4)
    assert torch.equal(quantizer.encode(quantizer.lookup(codes)), codes)


def test_the_gradient_is_that_of_the_unit_vector():
    latents = latents_of().requires_grad_()
    weight = torch.randn_like(latents)
    (make()(latents).quantized * weight).sum().backward()
    (expected,) = torch.autograd.grad((latents / latents.norm(dim=1, keepdim=True) * weight).sum(), latents)
    torch.testing.assert_close(latents.grad, expected, rtol=1e-10, atol=1e-14)
    assert (latents.grad * latents).sum(dim=1).abs().max() < 1e-12  # along the sphere


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_losses_are_those_over_all_codes_and_over_each_channel(temperature):
    quantizer, latents = make(entropy_temperature=temperature, beta=0.25), latents_of()
    found = quantizer(latents).losses
    units = as_tokens(latents / latents.norm(dim=1, keepdim=True))
    codes = torch.tensor(list(product((-1, 1), repeat=DIM)), dtype=torch.float64) / DIM**0.5
    distances = (units[:, None] - codes).square().sum(dim=2)
    p = (-distances / temperature).softmax(dim=1)
    of_channels = torch.stack([p[:, codes[:, d] > 0].sum(dim=1) for d in range(DIM)], dim=1).mean(dim=0)
    expected = {
        "commitment": distances.amin(dim=1).mean() / DIM,
        "token_entropy": entropy(p).mean(),
        "codebook_entropy": entropy(torch.stack([of_channels, 1 - of_channels], dim=1)).sum(),
    }
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-10, atol=1e-14)
    grouped = make(entropy_temperature=temperature, entropy_channels=DIM)(latents).losses["codebook_entropy"]
    torch.testing.assert_close(grouped, entropy(p.mean(dim=0)), rtol=1e-10, atol=0)
    assert grouped < found["codebook_entropy"]  # the channels alone give an upper bound


def test_no_latent_is_farther_from_its_code_than_the_bound():
    far = torch.eye(DIM, dtype=torch.float64).view(1, DIM, 1, DIM)  # only one channel is not 0
    for latents in (far, latents_of()):
        distances = (make()(latents).quantized - latents / latents.norm(dim=1, keepdim=True)).norm(dim=1)
        assert distances.max() <= (2 - 2 / DIM**0.5) ** 0.5 + 1e-12
