"""ArcVQLDMPipeline: class labels -> noise -> scaled latents (UNet, scheduler) -> images (tokenizer)."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, ImagePipelineOutput, UNet2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.class_labels import ClassConditionalPipeline, check_id2label
from priors.diffusion import guide
from priors.unet import CrossAttentionUNet, null_label
from tokenizer.model import VQTokenizer


class ArcVQLDMPipeline(ClassConditionalPipeline):
    """Class-conditional latent diffusion over an ArcVQ tokenizer.

    Args:
        vqvae: the tokenizer; its `decode` quantises the latents, then decodes them.
        unet: of either kind of `make_unet`; predicts the noise, or v, in scaled latents; the last row of its class
            embedding is the null class.
        scheduler: DDIM, or any diffusers scheduler made from its config.
        id2label: class id -> name, for every class but the null class.
        latent_scale: what the UNet's latents were multiplied by, 1 / standard deviation of the training latents.
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vqvae: VQTokenizer,
        unet: UNet2DModel | CrossAttentionUNet,
        scheduler: KarrasDiffusionSchedulers,
        id2label: dict | None = None,
        latent_scale: float = 1.0,
    ):
        super().__init__()
        if unet.config.in_channels != vqvae.latent_shape[0]:
            theirs, ours = unet.config.in_channels, vqvae.latent_shape[0]
            raise ValueError(f"the UNet takes latents of {theirs} channels, the tokenizer's have {ours}")
        if not 0 < latent_scale < math.inf:
            raise ValueError(f"latent_scale must be above 0 and finite, got {latent_scale}")
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=check_id2label(id2label, null_label(unet)), latent_scale=float(latent_scale))

    def optimize(
        self, dtype: torch.dtype | None = None, channels_last: bool = False, compile: bool = False
    ) -> "ArcVQLDMPipeline":
        """Makes the UNet faster, in place; to be called after the pipeline has been moved to its device.

        Args:
            dtype: of the UNet, such as torch.bfloat16; the latents between steps and the tokenizer stay as they are.
            channels_last: the layout that convolutions on GPUs want.
            compile: through torch.compile at its first call for each number of images, which takes a minute or so.
        """
        # Module's own methods: diffusers' warn of layers to be kept in float32, of which there are none.
        torch.nn.Module.to(self.unet, dtype=dtype)
        if channels_last:
            torch.nn.Module.to(self.unet, memory_format=torch.channels_last)
        if compile:
            self.unet.compile(dynamic=False)
        return self

    def check_sampling(
        self, guidance_scale: float, num_inference_steps: int, eta: float, guidance_interval: tuple[float, float]
    ) -> None:
        """Raises ValueError for options of the call that cannot work; they are those of `__call__`."""
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale}")
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must be between 1 and {most}, got {num_inference_steps}")
        undone = most % num_inference_steps
        if isinstance(self.scheduler, DDIMScheduler) and undone > most / 20:
            raise ValueError(
                f"diffusers' DDIM goes {most // num_inference_steps} timesteps in each of {num_inference_steps} steps, "
                f"and would leave {undone} of {most} undone, as noise; take a number that divides {most}"
            )
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {eta}")
        low, high = guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval takes two shares, 0 <= low <= high <= 1, got {guidance_interval}")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor,
        guidance_scale: float = 1.4,
        num_inference_steps: int = 250,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ArcVQLDMPipeline", int, Tensor, dict[str, Tensor]], dict] | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Samples one image per class label.

        The host does not wait for the device between steps, but where a step of the scheduler itself does: diffusers'
        UniPC solves a small system there, and noise from generators on the CPU (`eta` above 0) is copied.

        Args:
            class_labels: class ids, one per image.
            guidance_scale: s in u + s (c - u), both in one pass of twice the batch; 1 is no guidance and costs half.
            num_inference_steps: scheduler steps.
            eta: DDIM's noise, 0 (deterministic) to 1; schedulers without it ignore it.
            generator: one per image (a batch then equals its singles, up to the rounding of batched kernels), or one.
            latents: initial noise (B, D, h, w) of unit variance, instead of drawing it.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, step index, timestep, {"latents": latents}) after every step;
                the latents it returns replace the present ones.
            guidance_interval: the timesteps that are guided, as shares of the training's, from the first to the last
                of the two; the others are not and cost half (Kynkäänniemi et al. 2024).

        Raises:
            ValueError: labels, generators, latents or an option that do not fit, before anything is sampled.
        """
        labels = self.check_labels(class_labels, null_label(self.unet))
        generator = self.check_generators(generator, len(labels))
        self.check_output_type(output_type)
        self.check_sampling(guidance_scale, num_inference_steps, eta, guidance_interval)
        low, high = guidance_interval
        most = self.scheduler.config.num_train_timesteps
        device, dtype = self._execution_device, self.unet.dtype
        shape = (len(labels), *self.vqvae.latent_shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents for these labels have shape {shape}, got {tuple(latents.shape)}")

        # A scheduler looks its timesteps up and compares them: on the CPU no step of it waits for the device.
        self.scheduler.set_timesteps(num_inference_steps, device="cpu")
        timesteps = self.scheduler.timesteps
        on_device = timesteps.to(device)
        guided = [low <= timestep / most <= high for timestep in timesteps.tolist()]
        labels_twice = torch.cat([torch.full_like(labels, null_label(self.unet)), labels])
        # The latents stay float32 between steps whatever the UNet computes in: their sum would keep every rounding.
        latents = latents.to(device, torch.float32) * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}

        for index, timestep in enumerate(self.progress_bar(timesteps)):
            noised = self.scheduler.scale_model_input(latents, timestep).to(dtype)
            if guidance_scale == 1 or not guided[index]:
                predicted = self.unet(noised, on_device[index], labels).sample.float()
            else:
                both = self.unet(torch.cat([noised, noised]), on_device[index], labels_twice).sample
                predicted = guide(both, guidance_scale)
            latents = self.scheduler.step(predicted, timestep, latents, **options).prev_sample
            if callback_on_step_end is not None:
                returned = callback_on_step_end(self, index, timestep, {"latents": latents})
                latents = (returned or {}).get("latents", latents)

        latents = (latents / self.config.latent_scale).to(self.vqvae.dtype)
        images = self.in_slices(lambda part: self.vqvae.decode(part).sample, latents)
        output = self.to_output(images, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)
