"""Several threads call one pipeline at once: the images are those of one call after the other, bit for bit."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from pipeline_calls import latent_diffusion, pixelcnn, sample

THREADS = 8


def check_threads(call):
    """Calls 0 to 15, of several kinds, in eight threads at once, are those that one thread makes."""
    calls = range(2 * THREADS)
    alone = [call(index) for index in calls]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(call, calls))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert len({tuple(one.flatten().tolist()) for one in alone}) > THREADS


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
    ],
    ids=lambda scheduler: scheduler.__name__,
)
def test_latent_diffusion(scheduler):
    pipe = latent_diffusion()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)

    def call(index):
        options = {"num_inference_steps": 3 + index % 4, "eta": 0.5 * (index % 2)}
        return sample(pipe, (index % 3, 2), (index, 100 + index), **options)

    check_threads(call)


@pytest.mark.parametrize("in_training", [False, True])
def test_pixelcnn(in_training):
    pipe = pixelcnn(dropout=0.5, label_dropout=0.1)
    evaluated = sample(pipe)
    pipe.prior.train(in_training)
    assert torch.equal(sample(pipe), evaluated)  # without dropout

    def call(index):
        options = {"guidance_scale": 1.0 + index % 3, "temperature": 1.5}
        return sample(pipe, (index % 3, 1), (index, 100 + index), **options)

    check_threads(call)
    assert all(part.training == in_training for part in pipe.prior.modules())


@pytest.mark.parametrize("make", [latent_diffusion, pixelcnn])
def test_a_call_writes_nothing_on_the_pipeline_or_its_parts(make, monkeypatch):
    pipe = make()
    written = []
    parts = [pipe, *pipe.components.values()]
    modules = [module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules()]
    for kind in {type(one) for one in (*parts, *modules)}:
        set_attribute = kind.__setattr__

        def watched(self, name, value, set_attribute=set_attribute):
            if any(self is one for one in (*parts, *modules)):
                written.append((type(self).__name__, name))
            set_attribute(self, name, value)

        monkeypatch.setattr(kind, "__setattr__", watched)
    options = {"num_inference_steps": 3} if make is latent_diffusion else {}
    sample(pipe, **options)
    assert written == []
    pipe.set_progress_bar_config(disable=False)
    assert written == [(type(pipe).__name__, "_progress_bar_config")]  # a write would be seen


def test_the_scheduler_stays_as_it_was_set():
    pipe = latent_diffusion()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.scheduler.set_timesteps(7)
    before = copy.deepcopy(pipe.scheduler.__dict__)
    seen = []
    sample(pipe, num_inference_steps=3, callback_on_step_end=lambda pipe, *rest: seen.append(pipe.scheduler.timesteps))
    assert len(seen) == 3 and all(torch.equal(one, before["timesteps"]) for one in seen)
    for name, value in before.items():
        now = pipe.scheduler.__dict__[name]
        assert torch.equal(now, value) if isinstance(value, torch.Tensor) else now == value, name
