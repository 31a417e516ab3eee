"""While sampling, the host never waits for the device: it only queues."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from fake_cuda import FakeCuda, HostWaits
from pipeline_calls import quiet, seeded
from quantizer_cases import small_tokenizer

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet


def small_ldm(scheduler):
    tokenizer = small_tokenizer("arc")
    unet = make_unet(tokenizer.latent_shape, 3, 16, (1,), num_blocks=1, head_channels=8)
    scheduler = scheduler.from_config(make_scheduler().config)
    return quiet(ArcVQLDMPipeline(tokenizer, unet.eval(), scheduler, latent_scale=1.0))


def small_pixelcnn():
    tokenizer = small_tokenizer("arc")
    prior = PixelCNN(tokenizer.config.codebook_size, 3, tokenizer.code_shape, 8, 3, 16, label_dropout=0.1).eval()
    return quiet(ArcVQPixelCNNPipeline(tokenizer, prior))


def sampled(pipe, steps, **options):
    """Images on CUDA, made without a wait from the first step's end to the last's."""

    def on_step(pipe, index, *args):
        cuda.refuses_copies = index < steps - 1
        return {}

    with FakeCuda() as cuda:
        pipe.to("cuda:0")
        options = {"callback_on_step_end": on_step, "generator": seeded(0, 1), "output_type": "pt"} | options
        images = pipe([0, 1], **options).images
    assert images.device.type == "cuda" and len(images) == 2


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.0}, {"guidance_interval": (0.2, 0.6)}])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_latent_diffusion_does_not_wait(scheduler, options):
    sampled(small_ldm(scheduler), 6, num_inference_steps=6, **options)


@pytest.mark.parametrize(("scheduler", "options"), [(UniPCMultistepScheduler, {}), (DDIMScheduler, {"eta": 1.0})])
def test_where_the_scheduler_waits_is_as_the_docstring_says(scheduler, options):
    with pytest.raises(HostWaits):
        sampled(small_ldm(scheduler), 6, num_inference_steps=6, **options)


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_pixelcnn_does_not_wait(options):
    pipe = small_pixelcnn()
    sampled(pipe, pipe.prior.config.grid_size[0] * pipe.prior.config.grid_size[1], **options)


def test_a_wait_would_be_seen():
    # What the pipeline avoids: DDIM compares timesteps, and would wait for those on the device.
    scheduler = make_scheduler()
    with FakeCuda():
        latents = torch.zeros(1, 4, 2, 2).to("cuda:0")
        for device in ("cpu", "cuda:0"):
            scheduler.set_timesteps(5, device="cpu")
            timestep = scheduler.timesteps[0].to(device)
            if device == "cpu":
                scheduler.step(latents, timestep, latents)
            else:
                with pytest.raises(HostWaits):
                    scheduler.step(latents, timestep, latents)
        for read in (torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.nonzero, bool):
            with pytest.raises(HostWaits):
                read(latents[0, 0, 0, 0])
