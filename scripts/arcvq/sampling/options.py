"""Images out of trained models: reconstructions of a data set, samples of which each has a seed of its own."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from pipelines.class_conditional import ClassConditionalPipeline
from pipelines.metrics import ReconstructionMetrics, to_uint8
from priors.diffusion import other_scheduler
from tokenizer import VQTokenizer
from tokenizer.data import evaluation_batches

# Images that `reconstruct` gives back, and pixels of them that go through the networks at once: beside the memory of a
# training, 16 images of 256 px.
SHOWN = 64
PIXELS_AT_ONCE = 2**20


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
        """Sets the scheduler, and gives the arguments for this pipeline's call.

        Raises:
            ValueError: an option that the pipeline does not have, or that cannot work.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        its = [*inspect.signature(pipeline.__call__).parameters, *pipeline.components]
        check_options(pipeline, "sampling", given, [name for name in asdict(self) if name in its])
        if scheduler := given.pop("scheduler", None):
            pipeline.scheduler = other_scheduler(pipeline.scheduler, scheduler)
        if "eta" in given and "eta" not in inspect.signature(pipeline.scheduler.step).parameters:
            raise ValueError(f"sampling.eta is DDIM's noise, and {type(pipeline.scheduler).__name__} has none")
        pipeline.check_sampling(**self.all_options(pipeline) | given)
        return given

    @staticmethod
    def all_options(pipeline: ClassConditionalPipeline) -> dict[str, Any]:
        """The options of this pipeline's call, with its own defaults."""
        parameters = inspect.signature(pipeline.__call__).parameters
        return {
            field.name: parameters[field.name].default for field in fields(SamplingConfig) if field.name in parameters
        }


@dataclass(frozen=True)
class SpeedConfig:
    """How fast a pipeline computes; samples change by the rounding alone.

    Args:
        dtype: of the UNet.
        channels_last: the UNet's layout.
        compile: the UNet, or the PixelCNN's step, through torch.compile.
    """

    dtype: Literal["float32", "bfloat16"] | None = None
    channels_last: bool = False
    compile: bool = False

    def apply(self, pipeline: ClassConditionalPipeline) -> None:
        """Makes the pipeline so.

        Raises:
            ValueError: an option that the pipeline does not have.
        """
        given = {name: value for name, value in asdict(self).items() if value}
        check_options(pipeline, "speed", given, list(inspect.signature(pipeline.optimize).parameters))
        if "dtype" in given:
            given["dtype"] = getattr(torch, given["dtype"])
        if self.compile:
            # Threads that begin together compile each for itself, whole and last batches; after 8 PyTorch takes eager.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * (1 + torch.get_num_threads()))
        pipeline.optimize(**given)


def check_options(pipeline: ClassConditionalPipeline, section: str, given: Iterable[str], its: list[str]) -> None:
    """Raises ValueError for an option that is not among the pipeline's."""
    if foreign := [name for name in given if name not in its]:
        raise ValueError(f"{type(pipeline).__name__} has no option {section}.{foreign[0]}; it has {', '.join(its)}")


def class_labels(number: int, classes: Sequence[int], scheme: str, seed: int) -> Tensor:
    """int64 (number,) of these classes: `balanced`, one after the other, or `random`, drawn from `seed`."""
    if scheme == "balanced":
        places = torch.arange(number) % len(classes)
    else:
        places = torch.from_numpy(np.random.default_rng(seed).integers(len(classes), size=number))
    return torch.tensor(classes)[places]


def default_device() -> str:
    """The accelerator where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def sample_batches(
    pipeline: ClassConditionalPipeline,
    class_labels: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    show_progress: bool = True,
    **options: Any,
) -> Iterator[Tensor]:
    """Yields uint8 images (b, C, H, W), in order; image i is a function of class_labels[i], seeds[i] and options."""
    pipeline.set_progress_bar_config(disable=True)
    # Known before the first batch, so that a wrong label costs nothing.
    pipeline.check_labels(list(class_labels), len(pipeline.class_names))
    starts = range(0, len(class_labels), batch_size)
    with tqdm(total=len(class_labels), desc="sampling", unit="image", disable=not show_progress) as bar:
        for start in starts:
            labels = list(class_labels[start : start + batch_size])
            images = pipeline(
                labels, generator=generators(seeds[start : start + batch_size]), output_type="pt", **options
            ).images
            if not torch.isfinite(images).all():
                raise ValueError(f"samples of seeds {seeds[start]} and on hold NaN or infinity; the model diverged")
            bar.update(len(labels))
            yield (images * 255).round().to(torch.uint8).cpu()


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per seed, on the CPU: the same noise on every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def reconstruct(tokenizer: VQTokenizer, images: Dataset) -> tuple[Tensor, Tensor, ReconstructionMetrics]:
    """The first 64 originals and reconstructions, uint8 (n, C, H, W), and the metrics over all images."""
    tokenizer.eval()
    metrics = ReconstructionMetrics(number_of_codes(tokenizer))
    shown: list[tuple[Tensor, Tensor]] = []
    batch_size = max(1, min(SHOWN, PIXELS_AT_ONCE // tokenizer.config.image_size**2))
    for batch in evaluation_batches(images, batch_size=batch_size):
        made, codes = round_trip(tokenizer, batch["images"].to(tokenizer.device))
        originals, reconstructions = to_uint8(batch["images"]), to_uint8(made.cpu())
        metrics.update(originals, reconstructions, codes)
        if len(shown) * batch_size < SHOWN:
            shown.append((originals, reconstructions))
    originals, reconstructions = (torch.cat(side)[:SHOWN] for side in zip(*shown, strict=True))
    return originals, reconstructions, metrics


def number_of_codes(tokenizer: VQTokenizer) -> int:
    """K; 0 where the quantizer is continuous."""
    return tokenizer.config.codebook_size if tokenizer.has_codes else 0


@torch.no_grad()
def round_trip(tokenizer: VQTokenizer, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) in [-1, 1] -> what is left of them in codes, or, without codes, in latents; the codes."""
    if not tokenizer.has_codes:
        return tokenizer.decode(tokenizer.encode(images).latents).sample, None
    codes = tokenizer.encode_codes(images)
    return tokenizer.decode_codes(codes), codes
