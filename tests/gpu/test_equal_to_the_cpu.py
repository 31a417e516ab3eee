"""What a GPU computes is what the CPU computes, up to rounding: quantizers, noise, sampling."""

import copy

import pytest
import torch
from pipeline_calls import latent_diffusion, pixelcnn, sample
from quantizer_cases import NAMES, small_quantizer, total

pytestmark = pytest.mark.gpu
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_both(quantizer):
    """The quantizer on the CPU and on the GPU, each with its own leaf of the same latents."""
    latents = torch.randn(4, quantizer.encoder_channels, 4, 4)
    return [
        (copy.deepcopy(quantizer).to(device), latents.detach().clone().to(device).requires_grad_())
        for device in ("cpu", "cuda")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_quantizer_computes_the_same_with_the_same_noise(name):
    found = []
    for quantizer, latents in on_both(small_quantizer(name).train()):
        quantizer.seed_noise(3, 0)
        output = quantizer(latents)
        (output.quantized.sin().sum() + total(quantizer, output.losses).to(latents.device)).backward()
        gradients = {name: weight.grad for name, weight in quantizer.named_parameters() if weight.grad is not None}
        losses = {name: loss.detach() for name, loss in output.losses.items()}
        found.append([output.quantized.detach(), output.counts, latents.grad, losses, gradients])
    cpu, cuda = found
    assert cpu[4].keys() == cuda[4].keys()
    moved = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, cuda)
    torch.testing.assert_close(moved, cpu, **CLOSE)


@pytest.mark.parametrize("kind", ["normal", "uniform", "gumbel"])
def test_the_noise_is_the_same(kind):
    drawn = []
    for quantizer, latents in on_both(small_quantizer("vae")):
        quantizer.seed_noise(3, 5)
        drawn.append(getattr(quantizer.noise(latents), kind)(latents).cpu())
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("pipe", "options"), [(latent_diffusion, {"num_inference_steps": 6}), (pixelcnn, {})])
def test_a_seed_samples_the_same_images(pipe, options):
    made = pipe()
    images = [sample(copy.deepcopy(made).to(device), seeds=(4, 7), **options).cpu() for device in ("cpu", "cuda")]
    assert images[0].std() > 0.01
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-2)
