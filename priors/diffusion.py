"""Class-conditional latent diffusion: scaled latents, labels -> loss; noise, labels -> scaled latents.

The network is diffusers' `UNet2DModel` with one class embedding more than there are classes: the last is the null
class, which stands for "no label" in training (label dropout) and in classifier-free guidance.
"""

from math import gcd
from typing import Literal

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor
from torch.nn.functional import mse_loss


def make_unet(
    latent_shape: tuple[int, int, int],
    num_classes: int,
    channels: int = 64,
    channel_multipliers: tuple[int, ...] = (1, 2),
    num_blocks: int = 2,
    attention_sizes: tuple[int, ...] | None = None,
    head_channels: int = 32,
    dropout: float = 0.0,
) -> UNet2DModel:
    """The UNet of the diffusion prior, with random weights.

    Args:
        latent_shape: (D, h, w) of the latents.
        num_classes: classes without the null class, which is added here.
        channels: width at the full latent size.
        channel_multipliers: width of each level over `channels`; the latents are halved from level to level.
        num_blocks: residual blocks per level.
        attention_sizes: latent heights with self-attention after the residual blocks; None is the lowest level alone.
        head_channels: channels per attention head.
        dropout: dropout inside the residual blocks.

    Raises:
        ValueError: latents that cannot be halved as often as there are levels, an attention size that never occurs, or
            a width that does not go into groups or heads.
    """
    if channels < 2 or channels % 2:
        raise ValueError(f"channels must be even, got {channels}")
    if not channel_multipliers or min(num_blocks, head_channels, *channel_multipliers) < 1:
        raise ValueError(
            "unet.num_blocks, unet.head_channels and every one of unet.channel_multipliers must be at least 1, got "
            f"{num_blocks}, {head_channels} and {list(channel_multipliers)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    latent_channels, height, width = latent_shape
    sizes = [height >> level for level in range(len(channel_multipliers))]
    if any(side % (1 << (len(sizes) - 1)) for side in (height, width)):
        raise ValueError(
            f"latents of {height} x {width} cannot be halved {len(sizes) - 1} times, once per level but the first: "
            f"give unet.channel_multipliers fewer entries than {len(sizes)}"
        )
    attention_sizes = sizes[-1:] if attention_sizes is None else attention_sizes
    if absent := set(attention_sizes) - set(sizes):
        raise ValueError(f"unet.attention_sizes {sorted(absent)} are not among the sizes of the UNet's levels, {sizes}")
    attends = [size in attention_sizes for size in sizes]
    for multiplier, attention in zip(channel_multipliers, [*attends[:-1], True], strict=True):  # the middle attends too
        if attention and channels * multiplier % head_channels:
            raise ValueError(
                f"channels x {multiplier} = {channels * multiplier} do not go into heads of {head_channels}"
            )
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels * multiplier for multiplier in channel_multipliers),
        layers_per_block=num_blocks,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
        attention_head_dim=head_channels,
        dropout=dropout,
        # Two channels per group at least: in a group of one the norm would take out the embedding of time and class.
        norm_num_groups=gcd(32, channels // 2),
        num_class_embeds=num_classes + 1,
    )


def make_scheduler(prediction_type: Literal["epsilon", "v_prediction"] = "epsilon") -> DDIMScheduler:
    """The noise schedule of LDM's ImageNet model: 1000 steps, beta 0.0015 to 0.0195, linear in the root.

    Sampling begins at the last timestep whatever the number of steps ("trailing", Lin et al. 2024); diffusers' default
    begins far below it where the number does not divide 1000, at 599 for 600 steps.

    Args:
        prediction_type: what the UNet predicts: the noise, or v (Salimans and Ho 2022), which asks less of a small
            network at high noise, where the noise is nearly its input.
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


def null_label(unet: UNet2DModel) -> int:
    """The id of the null class: the last row of the class embedding."""
    return unet.config.num_class_embeds - 1


def diffusion_loss(
    unet: torch.nn.Module, scheduler: DDIMScheduler, latents: Tensor, labels: Tensor, null: int, label_dropout: float
) -> Tensor:
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14) or v, with labels dropped to the null class.

    Timesteps, noise and dropped labels come from torch's global generators.

    Args:
        unet: (noised latents, timesteps, labels) -> `.sample`; may be wrapped for parallel training.
        scheduler: adds the noise, and says what is predicted.
        latents: (B, D, h, w), scaled to unit standard deviation.
        labels: (B,) int64.
        null: id of the null class.
        label_dropout: probability in [0, 1] that a label is replaced by `null`.
    """
    # Drawn on the CPU, so that one seed gives the same training on every kind of device.
    noise = torch.randn(latents.shape, dtype=latents.dtype).to(latents.device)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, labels.shape).to(latents.device)
    dropped = (torch.rand(labels.shape) < label_dropout).to(latents.device)
    noised = scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noised, timesteps, torch.where(dropped, null, labels)).sample
    epsilon = scheduler.config.prediction_type == "epsilon"
    target = noise if epsilon else scheduler.get_velocity(latents, noise, timesteps)
    return mse_loss(predicted.float(), target.float())


def guided_prediction(
    unet: UNet2DModel, latents: Tensor, timestep: Tensor, labels: Tensor, guidance_scale: float
) -> Tensor:
    """Classifier-free guidance u + s (c - u) in one batched pass (Ho and Salimans 2022); one half of it when s = 1.

    Latents (B, D, h, w), labels (B,) int64 -> predicted noise or v (B, D, h, w).
    """
    if guidance_scale == 1:
        return unet(latents, timestep, labels).sample
    both = torch.cat([torch.full_like(labels, null_label(unet)), labels])
    unconditional, conditional = unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
