"""What every quantizer leaves alone, so that it trains on any kind of device: float64, and the host's time."""

import pytest
import torch
from fake_cuda import FakeCuda
from launches import Launches
from no_float64 import DEVICE, NoFloat64
from quantizer_cases import CASES as EVERY
from quantizer_cases import small_quantizer, total

from tokenizer.quantizers import make_quantizer

CASES = [(name, {}) for name in EVERY] + [
    ("cvq", {"anchor": "random"}),
    ("cvq", {"anchor": "probrandom"}),
    ("cvq", {"contrastive_weight": 0.5}),
    ("ema", {"revive_below": 0.5}),
    ("hvq", {"reset_every": 1, "hidden_channels": 8}),
]


def quantizer_of(name, options):
    return (make_quantizer(name, 12, 6, options) if options else small_quantizer(name)).train()


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_step_on_a_device_neither_waits_nor_copies(name, options, seeded):
    quantizer = quantizer_of(name, options)
    with FakeCuda() as cuda, torch.no_grad():
        quantizer.to("cuda:0")
        encoder_output = torch.empty(4, quantizer.encoder_channels, 4, 4, device="cuda:0")
        if seeded:
            quantizer.seed_noise(3, 0)
        cuda.refuses_copies = True
        output = quantizer(encoder_output)
        quantizer.loss_weights()
        quantizer.after_update(encoder_output, output.codes)
        quantizer.diagnostics()
    assert output.quantized.device.type == "cuda"


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_step_needs_no_float64(name, options):
    quantizer = quantizer_of(name, options)
    with NoFloat64():
        quantizer.to(DEVICE)
        encoder_output = torch.randn(4, quantizer.encoder_channels, 4, 4).to(DEVICE).requires_grad_()
        output = quantizer(encoder_output)
        loss = total(quantizer, output.losses) + output.quantized.sum()
        loss.backward()
        quantizer.after_update(encoder_output.detach(), output.codes)
        diagnostics = quantizer.diagnostics()
        statistics = [] if output.counts is None else [output.usage, output.perplexity]
        assert all(value.cpu().isfinite() for value in [loss, *statistics, *diagnostics.values()])
        assert encoder_output.grad.cpu().isfinite().all()


@pytest.mark.parametrize(("name", "most"), [("vae", 90), ("sq", 145), ("hvq", 480), ("vaevq", 340)])
def test_noise_takes_few_launches_for_any_batch(name, most):
    quantizer = make_quantizer(name, 64, 8, {"hidden_channels": 8} if name == "hvq" else {}).train().to("meta")
    quantizer.seed_noise(1, 0)
    encoder_output = torch.empty(1024, quantizer.encoder_channels, 8, 8, device="meta", requires_grad=True)
    with Launches() as launches:
        output = quantizer(encoder_output)
        (total(quantizer, output.losses).to("meta") + output.quantized.sum()).backward()
        quantizer.after_update(encoder_output.detach(), output.codes)
    assert launches.total <= most, launches
