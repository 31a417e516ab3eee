"""ArcVQLDMPipeline: class labels -> noise -> scaled latents (UNet, scheduler) -> images (tokenizer)."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipelines.call_arguments import (
    as_interval,
    check_callback,
    check_evaluating,
    check_latents,
    check_output_type,
    check_whole_way,
    replaced,
)
from pipelines.carried_options import settled
from pipelines.class_conditional import ClassConditionalPipeline, check_id2label
from priors.diffusion import guide
from priors.number_arguments import as_number, as_whole_number, described
from priors.unet import CrossAttentionUNet, null_label
from tokenizer.model import VQTokenizer


class ArcVQLDMPipeline(ClassConditionalPipeline):
    """Class-conditional latent diffusion over an ArcVQ tokenizer.

    `id2label` and `latent_scale` are noted on the UNet, and go with it if a pipeline is built from another's
    components.

    Args:
        vqvae: the tokenizer; its `decode` quantises the latents, then decodes them.
        unet: a UNet of either kind of `make_unet`; predicts the noise, or v, in scaled latents; the last row of its
            class embedding is the null class.
        scheduler: DDIM, or any diffusers scheduler made from its config.
        id2label: class id -> name, for every class but the null class; None: the names noted on the UNet, else the ids.
        latent_scale: factor that multiplied the UNet's training latents, 1 / their standard deviation; None: the factor
            noted on the UNet.

    Raises:
        TypeError: a component of another class, or a latent_scale that is no number.
        ValueError: components that do not fit each other, a scheduler of another process than diffusion, names that do
            not cover the classes; or no latent_scale is given, and the UNet has none or several noted.
    """

    model_cpu_offload_seq = "unet->vqvae"
    _callback_tensor_inputs = ("latents",)
    _prior = "unet"
    _carried = ("id2label", "latent_scale")

    def __init__(
        self,
        vqvae: VQTokenizer,
        unet: UNet2DModel | CrossAttentionUNet,
        scheduler: KarrasDiffusionSchedulers,
        id2label: dict | None = None,
        latent_scale: float | None = None,
    ):
        super().__init__()
        components = {"vqvae": vqvae, "unet": unet, "scheduler": scheduler}
        classes = self.check_components(components)
        known = {"id2label": settled(unet, "id2label", id2label)}
        names = check_id2label(known["id2label"], classes)
        known["latent_scale"] = settled(unet, "latent_scale", latent_scale)
        if known["latent_scale"] is None:
            raise ValueError(
                "latent_scale is missing, and this UNet comes from no pipeline that says it: pass what its latents "
                "were multiplied by in training, as model_index.json of its pipeline has it, or 1.0 where by nothing"
            )
        scale = as_number("latent_scale", known["latent_scale"])
        if not 0 < scale < math.inf:
            raise ValueError(f"latent_scale must be above 0 and finite, got {scale}")
        options = {"id2label": names, "latent_scale": scale}
        self.register(components, options, [name for name, value in known.items() if value is not None])

    @classmethod
    def _fitting_classes(cls, components: Mapping[str, Any]) -> int:
        unet, vqvae = components["unet"], components["vqvae"]
        if unet.config.in_channels != vqvae.latent_shape[0]:
            expected, channels = unet.config.in_channels, vqvae.latent_shape[0]
            raise ValueError(f"the UNet takes latents of {expected} channels, the tokenizer's have {channels}")
        return null_label(unet)

    def optimize(
        self, dtype: torch.dtype | None = None, channels_last: bool = False, compile: bool = False
    ) -> "ArcVQLDMPipeline":
        """Make the UNet faster, in place; call it after moving the pipeline to its device.

        Args:
            dtype: dtype of the UNet, such as torch.bfloat16; the latents between steps and the tokenizer keep theirs.
            channels_last: use the memory layout that convolutions on GPUs prefer.
            compile: compile with torch.compile at the first call for each number of images, which takes about a minute.

        Raises:
            TypeError: a dtype that is no floating-point dtype of torch.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be one of floating point such as torch.bfloat16, got {described(dtype)}")
        # Not diffusers' own `to`, which warns about layers to keep in float32, although the UNet has none.
        torch.nn.Module.to(self.unet, dtype=dtype)
        if channels_last:
            torch.nn.Module.to(self.unet, memory_format=torch.channels_last)
        if compile:
            self.unet.compile(dynamic=False)
        return self

    def check_sampling(
        self, guidance_scale: float, num_inference_steps: int, eta: float, guidance_interval: tuple[float, float]
    ) -> tuple[float, int, float, tuple[float, float]]:
        """Check options of `__call__`, and return them as Python numbers.

        Raises:
            TypeError: an option is no number.
            ValueError: an option is out of range.
        """
        guidance_scale = as_number("guidance_scale", guidance_scale)
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale must be a finite number, got {guidance_scale}")
        most = self.scheduler.config.num_train_timesteps
        num_inference_steps = as_whole_number("num_inference_steps", num_inference_steps)
        if not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must be between 1 and {most}, got {described(num_inference_steps)}")
        check_whole_way(self.scheduler, num_inference_steps)
        eta = as_number("eta", eta)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be between 0 and 1, got {eta}")
        return guidance_scale, num_inference_steps, eta, as_interval("guidance_interval", guidance_interval)

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
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample one image per class label.

        The host does not wait for the device between steps, with three exceptions: a scheduler step that synchronises
        itself (diffusers' UniPC solves a small system), noise from CPU generators (`eta` above 0), and a callback that
        replaces the latents, which are then checked.

        Several threads may call one pipeline at once, each with its own generators, unless it is offloaded. A call uses
        a copy of the scheduler and leaves the pipeline's own unchanged: in a callback, `pipe.scheduler.timesteps` are
        not those of the call; its timestep is the third argument.

        Args:
            class_labels: class ids, one per image.
            guidance_scale: s in u + s (c - u), both in one pass of twice the batch; 1 is no guidance and costs half.
            num_inference_steps: scheduler steps.
            eta: DDIM's noise, 0 (deterministic) to 1; schedulers without it ignore it.
            generator: one per image (a batch then equals single calls, up to rounding in batched kernels), or one for
                all.
            latents: initial noise (B, D, h, w) of unit variance, any floating dtype and device; None: drawn.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, step index, timestep, {"latents": latents}) after every step;
                latents in the dict that it returns replace the current ones. It may return None.
            guidance_interval: timesteps that are guided, as two shares of the training's timesteps, lower then upper
                limit; the others are not guided and cost half (Kynkäänniemi et al. 2024).
            callback_on_step_end_tensor_inputs: names of the tensors for the callback, `latents` or nothing.

        Raises:
            TypeError: an option of another type, or a replaced component of another class.
            ValueError: labels, generators, latents or an option that do not fit, or a UNet in training mode with
                dropout. All these errors come before sampling. During sampling: an unusable result of a callback, or
                latents or images that are not finite (for `pt` they are NaN instead).
        """
        null = self.check_ready()
        check_evaluating("unet", self.unet)
        labels = self.check_labels(class_labels, null)
        generator = self.check_generators(generator, len(labels))
        check_output_type(output_type)
        options = self.check_sampling(guidance_scale, num_inference_steps, eta, guidance_interval)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        shape = (len(labels), *self.vqvae.latent_shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        else:
            check_latents(latents, shape)

        def called_back(index: int, timestep: Tensor, latents: Tensor) -> Tensor:
            given = {"latents": latents} if callback_on_step_end_tensor_inputs else {}
            returned = callback_on_step_end(self, index, timestep, given)
            return replaced("latents", returned, latents, self._callback_tensor_inputs)

        on_step = None if callback_on_step_end is None else called_back
        latents = self._denoise(labels, latents, generator, *options, on_step)
        finite = latents.isfinite().flatten(1).all(dim=1)[:, None, None, None]
        latents = (latents / self.config.latent_scale).to(self.vqvae.dtype)
        images = self.in_slices(lambda part: self.vqvae.decode(part).sample, latents)
        # A tokenizer quantises NaN to some code, which would hide that the latents are not finite.
        output = self.to_output(images.where(finite, torch.nan), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _denoise(
        self,
        labels: Tensor,
        noise: Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        guidance_scale: float,
        num_inference_steps: int,
        eta: float,
        guidance_interval: tuple[float, float],
        on_step: Callable[[int, Tensor, Tensor], Tensor] | None,
    ) -> Tensor:
        """Denoise unit-variance noise (B, D, h, w) to scaled latents (B, D, h, w), float32."""
        device, dtype, null = self._execution_device, self.unet.dtype, null_label(self.unet)
        scheduler = self._own_scheduler(num_inference_steps)
        timesteps = scheduler.timesteps
        on_device = timesteps.to(device)
        low, high = guidance_interval
        most = scheduler.config.num_train_timesteps
        guided = [low <= timestep / most <= high for timestep in timesteps.tolist()]
        labels_twice = torch.cat([torch.full_like(labels, null), labels])
        # The latents stay float32 between steps for any dtype of the UNet, or rounding errors would accumulate.
        latents = noise.to(device, torch.float32) * scheduler.init_noise_sigma
        accepted = inspect.signature(scheduler.step).parameters
        options = {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in accepted}

        for index, timestep in enumerate(self.progress_bar(timesteps)):
            noised = scheduler.scale_model_input(latents, timestep).to(dtype)
            if guidance_scale == 1 or not guided[index]:
                predicted = self.unet(noised, on_device[index], labels).sample.float()
            else:
                both = self.unet(torch.cat([noised, noised]), on_device[index], labels_twice).sample
                predicted = guide(both, guidance_scale)
            latents = scheduler.step(predicted, timestep, latents, **options).prev_sample
            if on_step is not None:
                latents = on_step(index, timestep, latents)
        return latents

    def _own_scheduler(self, num_inference_steps: int) -> SchedulerMixin:
        """Copy the scheduler and set its timesteps, for one call.

        A scheduler stores its current step, and several threads may call a pipeline at once.
        """
        scheduler = copy.deepcopy(self.scheduler)
        try:
            # Schedulers look up and compare timesteps; on the CPU this does not synchronise with the device.
            scheduler.set_timesteps(num_inference_steps, device="cpu")
        except Exception as error:  # diffusers' schedulers raise errors of many classes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{type(scheduler).__name__} cannot take num_inference_steps {num_inference_steps}: {reason:.200}; "
                "take another number"
            ) from error
        return scheduler
