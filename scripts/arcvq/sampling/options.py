"""The options of sampling: how a pipeline samples, and how fast it computes."""

import inspect
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from pipelines.class_conditional import ClassConditionalPipeline
from priors.diffusion import other_scheduler


@dataclass(frozen=True)
class SamplingConfig:
    """How a pipeline samples; None is the pipeline's own default.

    Args:
        guidance_scale: of the latent diffusion, or of a PixelCNN trained with label dropout; 1 is no guidance.
        guidance_interval: timesteps of the latent diffusion that are guided, two shares of the training's.
        num_inference_steps: scheduler steps of the latent diffusion.
        scheduler: of the latent diffusion; None is the one it was saved with.
        eta: DDIM's noise, from 0 to 1.
        temperature: divides the PixelCNN's logits.
        top_k: of the PixelCNN, only the k most likely codes.
        top_p: of the PixelCNN, only the most likely codes that hold the probability p.
    """

    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    num_inference_steps: int | None = None
    scheduler: Literal["ddim", "dpmsolver++", "unipc"] | None = None
    eta: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def apply(self, pipeline: ClassConditionalPipeline) -> dict[str, Any]:
        """Set the pipeline's scheduler, and return the keyword arguments for its call.

        Raises:
            ValueError: the pipeline has no such option, or the value cannot work.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        accepted = [*inspect.signature(pipeline.__call__).parameters, *pipeline.components]
        _check_options(pipeline, "sampling", given, [name for name in asdict(self) if name in accepted])
        if scheduler := given.pop("scheduler", None):
            pipeline.scheduler = other_scheduler(pipeline.scheduler, scheduler)
        if "eta" in given and "eta" not in inspect.signature(pipeline.scheduler.step).parameters:
            raise ValueError(f"sampling.eta is DDIM's noise, and {type(pipeline.scheduler).__name__} has none")
        pipeline.check_sampling(**self.all_options(pipeline) | given)
        return given

    @staticmethod
    def all_options(pipeline: ClassConditionalPipeline) -> dict[str, Any]:
        """Return the sampling options of this pipeline's call, with its own defaults."""
        parameters = inspect.signature(pipeline.__call__).parameters
        return {
            field.name: parameters[field.name].default for field in fields(SamplingConfig) if field.name in parameters
        }


@dataclass(frozen=True)
class SpeedConfig:
    """How fast a pipeline computes; samples change by rounding alone.

    Args:
        dtype: of the UNet.
        channels_last: the UNet's memory layout.
        compile: the UNet, or the PixelCNN's step, through torch.compile.
    """

    dtype: Literal["float32", "bfloat16"] | None = None
    channels_last: bool = False
    compile: bool = False

    def apply(self, pipeline: ClassConditionalPipeline) -> None:
        """Set the pipeline's dtype, layout and compilation.

        Raises:
            ValueError: the pipeline has no such option.
        """
        given = {name: value for name, value in asdict(self).items() if value}
        _check_options(pipeline, "speed", given, list(inspect.signature(pipeline.optimize).parameters))
        if "dtype" in given:
            given["dtype"] = getattr(torch, given["dtype"])
        if self.compile:
            # Each thread compiles for itself, for whole batches and for the last one. After 8 compilations PyTorch
            # would fall back to eager mode.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * (1 + torch.get_num_threads()))
        pipeline.optimize(**given)


def _check_options(pipeline: ClassConditionalPipeline, section: str, given: Iterable[str], accepted: list[str]) -> None:
    """Raise ValueError for an option that the pipeline does not accept."""
    if unknown := [name for name in given if name not in accepted]:
        raise ValueError(
            f"{type(pipeline).__name__} has no option {section}.{unknown[0]}; it has {', '.join(accepted)}"
        )
