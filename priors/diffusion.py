"""Class-conditional latent diffusion: scaled latents, labels -> loss; noise, labels -> scaled latents."""

from typing import Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn.functional import mse_loss

from tokenizer.functional.noise import ImageNoise


def make_scheduler(prediction_type: Literal["epsilon", "v_prediction"] = "epsilon") -> DDIMScheduler:
    """Build the noise schedule of LDM's ImageNet model: 1000 steps, beta 0.0015 to 0.0195, linear in sqrt(beta).

    Sampling begins at the last timestep for any number of steps ("trailing" spacing, Lin et al. 2024). diffusers'
    default spacing begins far below it if the number does not divide 1000, at timestep 599 for 600 steps.

    Args:
        prediction_type: target of the UNet: the noise, or v (Salimans and Ho 2022). v is easier for a small network at
            high noise, where the noise is nearly its input.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )


SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def other_scheduler(scheduler: SchedulerMixin, name: str) -> SchedulerMixin:
    """Build one of `SCHEDULERS` with the same noise schedule.

    DDIM (Song et al. 2021), DPM-Solver++ (Lu et al. 2022, second order, multistep) or UniPC (Zhao et al. 2023).
    """
    return SCHEDULERS[name].from_config(scheduler.config)


def diffusion_loss(
    unet: torch.nn.Module,
    scheduler: DDIMScheduler,
    latents: Tensor,
    labels: Tensor,
    null: int,
    label_dropout: float,
    min_snr_gamma: float | None = None,
    noise: ImageNoise | None = None,
) -> Tensor:
    """Compute the mean squared error of the predicted noise (Ho et al. 2020, eq. 14) or v, with label dropout.

    Args:
        unet: (noised latents, timesteps, labels) -> `.sample`; may be wrapped for parallel training.
        scheduler: adds the noise; its config says whether noise or v is predicted.
        latents: (B, D, h, w), scaled to unit standard deviation.
        labels: (B,) int64.
        null: id of the null class.
        label_dropout: probability in [0, 1] that a label is replaced by `null`.
        min_snr_gamma: weights each sample by min(snr, gamma) / snr if noise is predicted, or by min(snr, gamma) / (snr
            + 1) if v is (Hang et al. 2023, "Efficient diffusion training via min-SNR weighting strategy", with gamma
            5); None: equal weights.
        noise: source of noise, timesteps and dropped labels, for these B images; None: seeded by the global generator.
    """
    noise = noise or ImageNoise(len(latents), latents.device)
    added, timesteps = noise.normal(latents), noise.integers(scheduler.config.num_train_timesteps)
    dropped = noise.uniform(torch.empty_like(labels, dtype=torch.float32)) < label_dropout
    noised = scheduler.add_noise(latents, added, timesteps)
    predicted = unet(noised, timesteps, torch.where(dropped, null, labels)).sample
    epsilon = scheduler.config.prediction_type == "epsilon"
    target = added if epsilon else scheduler.get_velocity(latents, added, timesteps)
    if min_snr_gamma is None:
        return mse_loss(predicted.float(), target.float())
    snr = compute_snr(scheduler, timesteps)  # (B,) float32
    weights = snr.clamp(max=min_snr_gamma) / (snr if epsilon else snr + 1)
    errors = mse_loss(predicted.float(), target.float(), reduction="none").flatten(1).mean(1)  # (B,)
    return (weights * errors).mean()


def guide(predictions: Tensor, guidance_scale: float) -> Tensor:
    """Apply classifier-free guidance u + s (c - u) (Ho and Salimans 2022).

    Predicted noise or v (2B, D, h, w), the null class's u first, any dtype -> (B, D, h, w) float32.
    """
    unconditional, conditional = predictions.float().chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
