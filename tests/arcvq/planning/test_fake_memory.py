"""The estimate of a step's memory: by hand, and against what real allocations and releases add up to."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.profiler import ProfilerActivity, profile

from arcvq.planning.fake_memory import FakeAllocation
from priors.unet import make_unet
from tokenizer import VQTokenizer


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)


def tensors(make, step):
    """The estimate of two steps of what `make` gives: module, inputs."""
    with FakeAllocation() as memory:
        module, *inputs = make()
        optimizer = adamw(module)
        memory.assign_training(module, optimizer)
        memory.assign("batch", inputs)
        for _ in range(2):
            step(module, optimizer, *inputs)
        return memory.peak().tensors


def descend(optimizer, loss):
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_an_mlp_by_hand():
    rows, inner = 1000, 64

    def make():
        return nn.Sequential(nn.Linear(8, inner), nn.Tanh(), nn.Linear(inner, 4)), torch.empty(rows, 8)

    found = tensors(make, lambda module, optimizer, x: descend(optimizer, module(x).square().sum()))
    weights = 8 * inner + inner + inner * 4 + 4
    last = inner * 4 + 4
    # Most is held in tanh's backward: its value, the gradient at it, and its own result, which is (rows, inner) too;
    # the last layer's gradients are there, and what autograd has not let go of: the two scalars, loss and its gradient.
    assert found.pop("activations and temporaries") == pytest.approx(4 * 3 * rows * inner, abs=4 * 4 * rows + 16)
    assert found == {
        "weights": 4 * weights,
        "optimiser": 4 * (2 * weights + 4),  # two averages, and a step of each of the four parameters
        "gradients": 4 * last,
        "batch": 4 * rows * 8,
    }


def test_a_convolution_by_hand():
    def make():
        return nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.empty(2, 3, 32, 32)

    found = tensors(make, lambda module, optimizer, x: descend(optimizer, module(x).exp().sum()))
    weights, image = 3 * 16 * 9, 2 * 16 * 32 * 32
    # At exp's backward: exp's value, the gradient at the convolution's, and the sum with its expanded gradient.
    assert found["activations and temporaries"] == pytest.approx(4 * 2 * image, abs=8)
    assert {part: size for part, size in found.items() if part != "activations and temporaries"} == {
        "weights": 4 * weights,
        "optimiser": 4 * (2 * weights + 1),
        "batch": 4 * 2 * 3 * 32 * 32,
    }


def tokenizer_step(module, optimizer, images):
    output = module(images)
    descend(optimizer, mse_loss(output.reconstruction.float(), images) + sum(output.losses.values()))


def make_tokenizer(batch=32, **options):
    images = torch.rand(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    return VQTokenizer(codebook_dim=8, **options).to(memory_format=torch.channels_last), images


def make_vqgan():
    return make_tokenizer(
        4, network="vqgan", hidden_channels=32, num_residual_layers=1, network_options={"channel_multipliers": (1, 2)}
    )


def unet_step(module, optimizer, latents):
    labels = torch.zeros(len(latents), dtype=torch.int64)
    descend(optimizer, mse_loss(module(latents, labels, labels).sample, latents))


def make_small_unet():
    unet = make_unet(
        (4, 16, 16), 10, channels=32, num_blocks=1, attention_sizes=(16, 8), conditioning="cross_attention"
    )
    return unet, torch.rand(8, 4, 16, 16)


def measured(make, step):
    """The bytes that the second of two real steps holds at its peak, by the allocator's own account."""
    module, *inputs = make()
    optimizer = adamw(module)
    step(module, optimizer, *inputs)
    state = [value for values in optimizer.state.values() for value in values.values()]
    before = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers(), *inputs, *state])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(module, optimizer, *inputs)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    assert abs(now) < 0.01 * highest  # a step gives back what it takes
    return before + highest


@pytest.mark.parametrize(
    "make, step",
    [
        pytest.param(make_tokenizer, tokenizer_step, id="conv"),
        pytest.param(make_vqgan, tokenizer_step, id="vqgan"),
        pytest.param(make_small_unet, unet_step, id="unet", marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_what_the_allocator_counts(make, step):
    assert sum(tensors(make, step).values()) == pytest.approx(measured(make, step), rel=0.02)


@pytest.mark.slow
def test_autocast_and_checkpoints_take_less_as_they_do_in_truth(has_bfloat16):
    def autocast_step(module, optimizer, images):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(images)
        descend(optimizer, mse_loss(output.reconstruction.float(), images) + sum(output.losses.values()))

    def make_checkpointed():
        tokenizer, images = make_vqgan()
        tokenizer.enable_gradient_checkpointing()
        return tokenizer, images

    plain = sum(tensors(make_vqgan, tokenizer_step).values())
    autocast, checkpointed = tensors(make_vqgan, autocast_step), tensors(make_checkpointed, tokenizer_step)
    # What a processor without bfloat16 converts in between, the reckoning does not know of.
    close = 0.02 if has_bfloat16 else 0.1
    assert sum(autocast.values()) == pytest.approx(measured(make_vqgan, autocast_step), rel=close)
    assert sum(autocast.values()) < 0.7 * plain
    assert sum(checkpointed.values()) == pytest.approx(measured(make_checkpointed, tokenizer_step), rel=0.02)
    assert sum(checkpointed.values()) < 0.7 * plain


def test_what_is_kept_adds_to_every_moment():
    with FakeAllocation() as memory:
        memory.add("kept", 1000)
        torch.empty(100)  # freed at once
        memory.assign("kept", [held := torch.empty(50)])
        torch.empty(25)
        torch.empty(1000, device="meta")
        assert memory.peak().tensors == {"kept": 1000, "activations and temporaries": 400}
        assert held.nbytes == 200


def test_nothing_is_allocated():
    with FakeAllocation() as memory:
        layer = nn.Linear(1 << 17, 1 << 17)  # 69 GB
        memory.assign("weights", layer.parameters())
        assert memory.peak().tensors["weights"] == 4 * ((1 << 34) + (1 << 17))
        assert layer(torch.empty(1, 1 << 17)).shape == (1, 1 << 17)
