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

    Args:
        vqvae: the tokenizer; its `decode` quantises the latents, then decodes them.
        unet: of either kind of `make_unet`; predicts the noise, or v, in scaled latents; the last row of its class
            embedding is the null class.
        scheduler: DDIM, or any diffusers scheduler made from its config.
        id2label: class id -> name, for every class but the null class; None: those of the pipeline that the UNet comes
            from, or else the numbers.
        latent_scale: what the UNet's latents were multiplied by, 1 / standard deviation of the training latents; None:
            that of the pipeline that the UNet comes from.

    Both are noted on the UNet, and go with it where a pipeline is made of another's components.

    Raises:
        TypeError: a component of another class, or a latent_scale that is no number.
        ValueError: components that do not fit to each other, a scheduler of another process than a diffusion, names
            that are not those of all classes; or a latent_scale that is not given where the UNet comes from no
            pipeline, or from several that differ in it.
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
        said = {"id2label": settled(unet, "id2label", id2label)}
        names = check_id2label(said["id2label"], classes)
        said["latent_scale"] = settled(unet, "latent_scale", latent_scale)
        if said["latent_scale"] is None:
            raise ValueError(
                "latent_scale is missing, and this UNet comes from no pipeline that says it: pass what its latents "
                "were multiplied by in training, as model_index.json of its pipeline has it, or 1.0 where by nothing"
            )
        scale = as_number("latent_scale", said["latent_scale"])
        if not 0 < scale < math.inf:
            raise ValueError(f"latent_scale must be above 0 and finite, got {scale}")
        options = {"id2label": names, "latent_scale": scale}
        self.register(components, options, [name for name, value in said.items() if value is not None])

    @classmethod
    def _fitting_classes(cls, components: Mapping[str, Any]) -> int:
        unet, vqvae = components["unet"], components["vqvae"]
        if unet.config.in_channels != vqvae.latent_shape[0]:
            theirs, ours = unet.config.in_channels, vqvae.latent_shape[0]
            raise ValueError(f"the UNet takes latents of {theirs} channels, the tokenizer's have {ours}")
        return null_label(unet)

    def optimize(
        self, dtype: torch.dtype | None = None, channels_last: bool = False, compile: bool = False
    ) -> "ArcVQLDMPipeline":
        """Makes the UNet faster, in place; to be called after the pipeline has been moved to its device.

        Args:
            dtype: of the UNet, such as torch.bfloat16; the latents between steps and the tokenizer stay as they are.
            channels_last: the layout that convolutions on GPUs want.
            compile: through torch.compile at its first call for each number of images, which takes a minute or so.

        Raises:
            TypeError: a dtype that is none of torch's of floating point.
        """
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype must be one of floating point such as torch.bfloat16, got {described(dtype)}")
        # Module's own methods: diffusers' warn of layers to be kept in float32, of which there are none.
        torch.nn.Module.to(self.unet, dtype=dtype)
        if channels_last:
            torch.nn.Module.to(self.unet, memory_format=torch.channels_last)
        if compile:
            self.unet.compile(dynamic=False)
        return self

    def check_sampling(
        self, guidance_scale: float, num_inference_steps: int, eta: float, guidance_interval: tuple[float, float]
    ) -> tuple[float, int, float, tuple[float, float]]:
        """The options of `__call__` as Python's own numbers.

        Raises:
            TypeError: one that is no number.
            ValueError: one that cannot work.
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
        """Samples one image per class label.

        The host does not wait for the device between steps, but where a step of the scheduler itself does, as
        diffusers' UniPC solves a small system there, and noise from generators on the CPU (`eta` above 0) is copied; or
        where a callback replaces the latents, which are looked at.

        Several threads may call one pipeline at once, each with generators of its own, unless it is offloaded. A call
        works on a copy of the scheduler and leaves that of the pipeline as it was set: in a callback
        `pipe.scheduler.timesteps` are not those of the call, whose timestep is the third argument.

        Args:
            class_labels: class ids, one per image.
            guidance_scale: s in u + s (c - u), both in one pass of twice the batch; 1 is no guidance and costs half.
            num_inference_steps: scheduler steps.
            eta: DDIM's noise, 0 (deterministic) to 1; schedulers without it ignore it.
            generator: one per image (a batch then equals its singles, up to the rounding of batched kernels), or one.
            latents: initial noise (B, D, h, w) of unit variance, of any float type and on any device, instead of
                drawing it.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, step index, timestep, {"latents": latents}) after every step;
                the latents it returns, in a dict as well, replace the present ones. It may return None.
            guidance_interval: the timesteps that are guided, as shares of the training's, from the first to the last
                of the two; the others are not and cost half (Kynkäänniemi et al. 2024).
            callback_on_step_end_tensor_inputs: names of what the callback is given, `latents` or nothing.

        Raises:
            TypeError: an option of another type, or a component that has been replaced by another thing.
            ValueError: labels, generators, latents or an option that do not fit, or a UNet in training mode that has
                dropout. Either comes before anything is sampled, but for what a callback returns, and for latents or
                images that are not finite, which of type `pt` are NaN.
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
        # A tokenizer takes NaN for some code of its codebook, and would hide that there are no latents.
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
        """Noise (B, D, h, w) of unit variance -> scaled latents (B, D, h, w), float32."""
        device, dtype, null = self._execution_device, self.unet.dtype, null_label(self.unet)
        scheduler = self._own_scheduler(num_inference_steps)
        timesteps = scheduler.timesteps
        on_device = timesteps.to(device)
        low, high = guidance_interval
        most = scheduler.config.num_train_timesteps
        guided = [low <= timestep / most <= high for timestep in timesteps.tolist()]
        labels_twice = torch.cat([torch.full_like(labels, null), labels])
        # The latents stay float32 between steps whatever the UNet computes in: their sum would keep every rounding.
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
        """A copy of the scheduler with its timesteps set, for one call.

        At which of its steps it is, is its state, and several threads may call a pipeline at once.
        """
        scheduler = copy.deepcopy(self.scheduler)
        try:
            # It looks its timesteps up and compares them: on the CPU no step of it waits for the device.
            scheduler.set_timesteps(num_inference_steps, device="cpu")
        except Exception as error:  # of whatever kind diffusers' many schedulers raise for what they cannot do
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{type(scheduler).__name__} cannot take num_inference_steps {num_inference_steps}: {reason:.200}; "
                "take another number"
            ) from error
        return scheduler
