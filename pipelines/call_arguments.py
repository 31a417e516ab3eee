"""Check the arguments of a pipeline's constructor and call before anything is sampled: one error, one line."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, DDIMParallelScheduler, DDIMScheduler, PNDMScheduler, SchedulerMixin
from torch import Tensor, nn

from priors.number_arguments import as_number, described

OUTPUT_TYPES = ("pil", "np", "pt")

# Arguments that the pipeline passes to a scheduler's step.
_STEP = ("model_output", "timestep", "sample")

# These schedulers advance floor(all timesteps / steps) timesteps in each step.
_STRIDES = (DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler, PNDMScheduler)


def check_component(name: str, component: Any, classes: tuple[type, ...]) -> None:
    """Raise TypeError if a pipeline's component is of none of these classes; it may be compiled."""
    if not isinstance(getattr(component, "_orig_mod", component), classes):
        wanted = " or ".join(allowed.__name__ for allowed in classes)
        loader = "from_config(pipe.scheduler.config)" if name == "scheduler" else "from_pretrained(folder)"
        raise TypeError(
            f"{name} must be a {wanted}, got {described(component)}; pass one, as {loader} of its class makes it"
        )


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Raise ValueError for a scheduler that does not run a variance-preserving diffusion from noise to data.

    Schedulers of flow matching or of EDM scale latents and timesteps differently; inverse ones run towards the noise.
    """
    prediction = scheduler.config.get("prediction_type", "epsilon")
    parameters = inspect.signature(getattr(scheduler, "step", lambda: None)).parameters.values()
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ]
    timesteps = getattr(scheduler, "timesteps", None)
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas"):
        reason = "has no noise schedule of a diffusion, as flow matching has none"
    elif not hasattr(scheduler, "step"):
        reason = "has no step from one timestep to the next"
    elif scheduler.config.get("snr_shift_scale", 1) != 1:
        reason = f"shifts the noise schedule by snr_shift_scale {scheduler.config.snr_shift_scale}"
    elif scheduler.config.get("timestep_type", "discrete") != "discrete":
        reason = f"has timestep_type {scheduler.config.timestep_type!r}, and the UNet takes those of its training"
    elif prediction not in ("epsilon", "v_prediction", "sample"):
        reason = f"has prediction_type {prediction!r}, and the UNet predicts noise or v"
    elif not set(needed) <= set(_STEP):
        reason = f"needs {', '.join(name for name in needed if name not in _STEP)} in each step"
    elif timesteps is not None and timesteps[0] < timesteps[-1]:
        reason = "goes from images to noise"
    else:
        return
    raise ValueError(
        f"scheduler {type(scheduler).__name__} {reason}; take one that goes with DDIM's config, such as "
        "DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)"
    )


def check_whole_way(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """Raise ValueError if strides of num_train_timesteps // steps leave more than 5 % of the timesteps undone.

    Other schedulers than those of equal whole strides always pass.
    """
    most = scheduler.config.num_train_timesteps
    undone = most % num_inference_steps
    if isinstance(scheduler, _STRIDES) and undone > most / 20:
        raise ValueError(
            f"{type(scheduler).__name__} goes {most // num_inference_steps} timesteps in each of {num_inference_steps} "
            f"steps, and would leave {undone} of {most} undone, as noise; take num_inference_steps that divide {most}"
        )


def as_interval(name: str, value: Any) -> tuple[float, float]:
    """Convert to two shares, 0 <= low <= high <= 1.

    Raises:
        TypeError: no sequence of numbers.
        ValueError: not two shares, or out of order or range.
    """
    if not isinstance(value, Sequence | np.ndarray | Tensor) or isinstance(value, str | bytes):
        raise TypeError(f"{name} takes two shares such as (0.2, 0.8), got {described(value)}")
    if getattr(value, "ndim", 1) != 1 or len(value) != 2:
        raise ValueError(f"{name} takes two shares such as (0.2, 0.8), got {described(value)}")
    low, high = (as_number(f"a share of {name}", share) for share in value)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{name} takes two shares, 0 <= low <= high <= 1, got {(low, high)}")
    return low, high


def check_latents(latents: Any, shape: tuple[int, ...]) -> None:
    """Check initial noise.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, no floating dtype, or NaN or infinity in it.
    """
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a Tensor, got {described(latents)}; take torch.from_numpy of an array")
    if tuple(latents.shape) != shape:
        raise ValueError(f"latents for these labels have shape {shape}, got {tuple(latents.shape)}; draw them so")
    if not latents.is_floating_point() or latents.is_meta or latents.layout != torch.strided:
        raise ValueError(f"latents must be floating point, got {described(latents)} on {latents.device}; draw floats")
    if not latents.float().isfinite().all():  # float8 has no isfinite of its own
        raise ValueError("latents hold NaN or infinity; draw noise of unit variance, as torch.randn does")


def check_evaluating(name: str, prior: nn.Module) -> None:
    """Raise ValueError for a prior in training mode with dropout, which would zero units at random."""
    if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in prior.modules()):
        raise ValueError(f"the {name} is in training mode, and has dropout; call pipe.{name}.eval() before")


def check_finite(images: np.ndarray) -> None:
    """Raise ValueError for images with NaN, which would be drawn black."""
    if not np.isfinite(images).all():
        raise ValueError(
            "images that are not finite: lower guidance_scale if it is large, take dtype=torch.bfloat16 or float32 if "
            "it is float16, or else train the networks again, which hold NaN"
        )


def check_output_type(output_type: Any) -> None:
    """Raise ValueError for an unknown output type."""
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is one of {', '.join(OUTPUT_TYPES)}, got {described(output_type)}")


def check_callback(callback: Any, tensor_inputs: Any, allowed: Collection[str]) -> None:
    """Check a callback and the names of its tensors, as diffusers does.

    Raises:
        TypeError: the callback is not callable, or the names are no list.
        ValueError: a name that is not allowed.
    """
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback_on_step_end must be a function of (pipeline, step, timestep, tensors), got {described(callback)}"
        )
    name = "callback_on_step_end_tensor_inputs"
    if not isinstance(tensor_inputs, list | tuple):
        raise TypeError(f"{name} must be a list of names out of {list(allowed)}, got {described(tensor_inputs)}")
    if unknown := [tensor for tensor in tensor_inputs if tensor not in allowed]:
        raise ValueError(f"{name} must be a list of names out of {list(allowed)}, got {described(unknown[0])} in it")


def replaced(name: str, returned: Any, present: Tensor, allowed: Collection[str]) -> Tensor:
    """Return the tensor `name` that a callback returned, or the current one.

    Raises:
        TypeError: the callback returned neither a dict of tensors nor None.
        ValueError: another name, or a tensor of another shape or kind.
    """
    remedy = f"return a dict such as {{{name!r}: {name}}}, or None"
    if returned is None:
        return present
    if not isinstance(returned, Mapping):
        raise TypeError(f"callback_on_step_end has returned {described(returned)}; {remedy}")
    if unknown := [key for key in returned if key not in allowed]:
        raise ValueError(f"callback_on_step_end has returned {described(unknown[0])} among its names; {remedy}")
    value = returned.get(name, present)
    if value is present:
        return present
    if not isinstance(value, Tensor):
        raise TypeError(f"callback_on_step_end has returned {described(value)} as {name}; {remedy}")
    wrong_kind = value.is_floating_point() != present.is_floating_point() or value.dtype == torch.bool
    if value.shape != present.shape or wrong_kind or value.is_complex():
        raise ValueError(
            f"callback_on_step_end has returned {described(value)} as {name}, which are {described(present)}; {remedy}"
        )
    if value.is_floating_point() and not value.isfinite().all():
        raise ValueError(f"callback_on_step_end has returned {name} with NaN or infinity; {remedy} of finite numbers")
    return value.to(present)
