import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import FakeCuda

from priors.diffusion import diffusion_loss, guide, make_scheduler
from priors.unet import make_unet
from tokenizer.functional.noise import ImageNoise

NUM_CLASSES = 3


@pytest.fixture(scope="module", params=["embedding", "cross_attention"])
def unet(request):
    torch.manual_seed(0)
    sizes = {"channels": 64, "channel_multipliers": (1,), "num_blocks": 1, "attention_sizes": ()}
    unet = make_unet((4, 4, 4), NUM_CLASSES, **sizes, conditioning=request.param)
    with torch.no_grad():  # a random embedding says little
        unet.class_embedding.weight.mul_(5)
    return unet.eval()


class Recorder(torch.nn.Module):
    """Predicts zero noise and keeps what it was given."""

    def forward(self, latents, timesteps, labels):
        self.latents, self.timesteps, self.labels = latents, timesteps, labels
        return SimpleNamespace(sample=torch.zeros_like(latents))


def test_the_schedule_is_linear_in_the_root_of_beta():
    scheduler = make_scheduler()
    expected = torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.betas.double(), expected, rtol=1e-5, atol=0)
    assert scheduler.betas[0].item() == pytest.approx(0.0015, rel=1e-6)
    assert scheduler.betas[-1].item() == pytest.approx(0.0195, rel=1e-6)
    assert scheduler.config.prediction_type == "epsilon"
    # Latents are not confined to [-1, 1].
    assert not scheduler.config.clip_sample and not scheduler.config.thresholding


@pytest.mark.parametrize("steps", [1, 7, 50, 250, 300, 600, 999, 1000])
def test_sampling_begins_in_pure_noise_whatever_the_number_of_steps(steps):
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps and scheduler.timesteps[0] == 999
    assert (scheduler.timesteps.diff() < 0).all()
    assert 0 <= scheduler.timesteps[-1] <= 1000 / steps


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_step_of_the_schedule_with_the_true_prediction_goes_to_the_clean_latents(prediction_type):
    scheduler = make_scheduler(prediction_type)
    scheduler.set_timesteps(10)
    clean, noise = torch.randn(2, 2, 4, 4, 4) * 3
    timestep = scheduler.timesteps[5]
    alpha = scheduler.alphas_cumprod[timestep]
    noised = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    predicted = noise if prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    found = scheduler.step(predicted, timestep, noised).pred_original_sample
    torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_equals_a_computation_by_hand(unet, prediction_type):
    latents, labels = torch.randn(6, 4, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    scheduler = make_scheduler(prediction_type)
    source = ImageNoise(6, latents.device, 7)
    loss = diffusion_loss(unet, scheduler, latents, labels, NUM_CLASSES, label_dropout=0.5, noise=source)

    source = ImageNoise(6, latents.device, 7)
    noise, timesteps, uniform = source.normal(latents), source.integers(1000), source.uniform(torch.empty(6))
    shown = torch.where(uniform < 0.5, NUM_CLASSES, labels)
    assert 0 < (shown == NUM_CLASSES).sum() < 6
    betas = torch.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)[timesteps].float()[:, None, None, None]
    with torch.no_grad():
        predicted = unet(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, timesteps, shown).sample
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    target = noise if prediction_type == "epsilon" else velocity
    assert loss.item() == pytest.approx(((predicted - target) ** 2).mean().item(), rel=1e-5)
    assert loss.requires_grad


def test_timesteps_cover_the_whole_schedule_and_latents_are_noised():
    recorder = Recorder()
    latents = torch.full((4000, 1, 1, 1), 3.0)
    loss = diffusion_loss(recorder, make_scheduler(), latents, torch.zeros(4000, dtype=torch.int64), 9, 0.0)
    assert recorder.timesteps.min() < 10 and 990 <= recorder.timesteps.max() < 1000
    assert loss.item() == pytest.approx(1, abs=0.1)  # zero noise predicted: the noise's own variance
    early, late = recorder.timesteps < 100, recorder.timesteps > 900
    assert recorder.latents[early].mean() > 2 and recorder.latents[late].mean() < 0.5


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.0), (0.1, 0.1), (1.0, 1.0)])
def test_labels_are_dropped_to_null_at_the_given_rate(dropout, share):
    recorder = Recorder()
    labels = torch.arange(5000) % NUM_CLASSES
    diffusion_loss(recorder, make_scheduler(), torch.zeros(5000, 1, 1, 1), labels, NUM_CLASSES, dropout)
    dropped = recorder.labels == NUM_CLASSES
    assert dropped.double().mean().item() == pytest.approx(share, abs=0.02 if 0 < share < 1 else 0)
    assert torch.equal(recorder.labels[~dropped], labels[~dropped])


def test_full_dropout_makes_the_loss_independent_of_the_labels(unet):
    latents = torch.randn(4, 4, 4, 4)
    losses = {}
    for dropout in (0.0, 1.0):
        for label in (0, 2):
            torch.manual_seed(3)
            labels = torch.full((4,), label)
            losses[dropout, label] = diffusion_loss(unet, make_scheduler(), latents, labels, NUM_CLASSES, dropout)
    assert torch.equal(losses[1.0, 0], losses[1.0, 2])
    assert not torch.equal(losses[0.0, 0], losses[0.0, 2])


def test_the_loss_of_half_precision_latents_is_float32():
    recorder = Recorder()
    latents = torch.zeros(4, 2, 4, 4, dtype=torch.bfloat16)
    loss = diffusion_loss(recorder, make_scheduler(), latents, torch.zeros(4, dtype=torch.int64), 9, 0.0)
    assert recorder.latents.dtype == torch.bfloat16 and loss.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.4, 4.0])
def test_guidance_equals_its_formula_from_two_passes(unet, scale):
    latents, labels, timestep = torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 2]), torch.tensor(400)
    unconditional = unet(latents, timestep, torch.full((3,), NUM_CLASSES)).sample
    conditional = unet(latents, timestep, labels).sample
    assert (conditional - unconditional).abs().max() > 1e-2
    expected = unconditional + scale * (conditional - unconditional)
    both = unet(torch.cat([latents, latents]), timestep, torch.tensor([NUM_CLASSES] * 3 + [0, 1, 2])).sample
    torch.testing.assert_close(guide(both, scale), expected, rtol=1e-4, atol=1e-5)
    halves = guide(both.bfloat16(), scale)
    assert halves.dtype == torch.float32  # the difference of two near numbers is not rounded again


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_each_sample_by_its_timestep(prediction_type, gamma):
    """Against the paper's weights of the clean latents' error, min(snr, gamma): with the oracle x0 error per sample."""
    recorder, scheduler = Recorder(), make_scheduler(prediction_type)
    latents = torch.randn(64, 2, 4, 4)
    torch.manual_seed(11)
    loss = diffusion_loss(recorder, scheduler, latents, torch.zeros(64, dtype=torch.int64), 9, 0.0, gamma)
    alpha = scheduler.alphas_cumprod[recorder.timesteps].double()[:, None, None, None]
    # What a prediction of zero says of the clean latents, and how far that is off.
    noised = recorder.latents.double()
    clean = noised / alpha.sqrt() if prediction_type == "epsilon" else alpha.sqrt() * noised
    errors = (clean - latents).square().mean((1, 2, 3))
    snr = (alpha / (1 - alpha)).flatten()
    assert (snr > gamma).any() and (snr < gamma).any()
    expected = (snr.clamp(max=gamma) * errors).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-4) and loss.dtype == torch.float32


def test_without_min_snr_all_timesteps_weigh_alike():
    recorder, labels = Recorder(), torch.zeros(64, dtype=torch.int64)
    losses = []
    for gamma in (None, 1e9):  # for the noise, a bound that is never reached is none
        torch.manual_seed(2)
        losses.append(diffusion_loss(recorder, make_scheduler(), torch.randn(64, 2, 4, 4), labels, 9, 0.0, gamma))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


def test_any_split_of_the_batch_meets_the_same_noise():
    latents, labels = torch.randn(6, 4, 4, 4), torch.arange(6) % NUM_CLASSES
    seen = []
    for bounds in ((0, 6), (0, 2, 6), (0, 1, 2, 3, 4, 5, 6)):
        parts = []
        for first, end in itertools.pairwise(bounds):
            recorder, noise = Recorder(), ImageNoise(end - first, latents.device, 5, first)
            some = latents[first:end], labels[first:end]
            diffusion_loss(recorder, make_scheduler(), *some, NUM_CLASSES, 0.5, noise=noise)
            parts.append((recorder.latents, recorder.timesteps, recorder.labels))
        seen.append([torch.cat(part) for part in zip(*parts, strict=True)])
    for found in seen[1:]:
        for one, other in zip(found, seen[0], strict=True):
            torch.testing.assert_close(one, other)
    assert len(set(seen[0][1].tolist())) > 3 and 0 < (seen[0][2] == NUM_CLASSES).sum() < 6


def test_a_loss_on_a_device_neither_waits_nor_copies():
    recorder, scheduler = Recorder(), make_scheduler()
    with FakeCuda() as cuda:
        latents, labels = torch.empty(4, 2, 4, 4, device="cuda:0"), torch.empty(4, device="cuda:0", dtype=torch.int64)
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.to("cuda:0")
        cuda.refuses_copies = True
        loss = diffusion_loss(recorder, scheduler, latents, labels, 9, 0.1, 5.0)
    assert loss.device.type == "cuda"
