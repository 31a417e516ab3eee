"""ArcVQLDMPipeline: class labels -> noise -> scaled latents (UNet, scheduler) -> images (tokenizer)."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput, UNet2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.class_labels import ClassConditionalPipeline, check_id2label
from priors.diffusion import guided_prediction
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
        if not latent_scale > 0:
            raise ValueError(f"latent_scale must be above 0, got {latent_scale}")
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=check_id2label(id2label, null_label(unet)), latent_scale=float(latent_scale))

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
    ) -> ImagePipelineOutput | tuple[Any]:
        """Samples one image per class label.

        Args:
            class_labels: class ids, one per image.
            guidance_scale: s in u + s (c - u); 1 is no guidance and costs half.
            num_inference_steps: scheduler steps.
            eta: DDIM's noise, 0 (deterministic) to 1; schedulers without it ignore it.
            generator: one per image (a batch then equals its singles, up to the rounding of batched kernels), or one.
            latents: initial noise (B, D, h, w) of unit variance, instead of drawing it.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, step index, timestep, {"latents": latents}) after every step;
                the latents it returns replace the present ones.

        Raises:
            ValueError: labels, generators, latents or an option that do not fit, before anything is sampled.
        """
        labels = self.check_labels(class_labels, null_label(self.unet))
        generator = self.check_generators(generator, len(labels))
        self.check_output_type(output_type)
        most = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must be between 1 and {most}, got {num_inference_steps}")
        shape = (len(labels), *self.vqvae.latent_shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents for these labels have shape {shape}, got {tuple(latents.shape)}")

        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = latents.to(self._execution_device, self.unet.dtype) * self.scheduler.init_noise_sigma
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}

        for index, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            noised = self.scheduler.scale_model_input(latents, timestep)
            predicted = guided_prediction(self.unet, noised, timestep, labels, guidance_scale)
            latents = self.scheduler.step(predicted, timestep, latents, **options).prev_sample
            if callback_on_step_end is not None:
                returned = callback_on_step_end(self, index, timestep, {"latents": latents})
                latents = (returned or {}).get("latents", latents)

        images = self.vqvae.decode((latents / self.config.latent_scale).to(self.vqvae.dtype)).sample
        output = self.to_output(images, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)
