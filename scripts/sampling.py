"""Images out of trained models: reconstructions of a data set, samples of which each has a seed of its own."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from pipelines.class_labels import ClassConditionalPipeline
from pipelines.metrics import ReconstructionMetrics, to_uint8
from pipelines.pictures import save_class_samples
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
        guidance_scale: of the latent diffusion; 1 is no guidance.
        num_inference_steps: scheduler steps of the latent diffusion.
        eta: DDIM's noise, from 0 to 1.
        temperature: divides the PixelCNN's logits.
        top_k: of the PixelCNN, only the k most likely codes.
        top_p: of the PixelCNN, only the most likely codes that hold the probability p.
    """

    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    eta: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None

    def options(self, pipeline: ClassConditionalPipeline) -> dict[str, float | int]:
        """The arguments that were given, for this pipeline's call.

        Raises:
            ValueError: one that the pipeline does not have.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        accepted = inspect.signature(pipeline.__call__).parameters
        if foreign := [name for name in given if name not in accepted]:
            its = ", ".join(name for name in asdict(self) if name in accepted)
            raise ValueError(f"{type(pipeline).__name__} has no option sampling.{foreign[0]}; it has {its}")
        return given

    @staticmethod
    def all_options(pipeline: ClassConditionalPipeline) -> dict[str, Any]:
        """The options that this pipeline has, with its own defaults."""
        parameters = inspect.signature(pipeline.__call__).parameters
        return {
            field.name: parameters[field.name].default for field in fields(SamplingConfig) if field.name in parameters
        }


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


def save_preview(pipeline: ClassConditionalPipeline, picture: Path, **options: Any) -> None:
    """Four images of each of the first 10 classes, of seeds 0 to 39; `options` are those of the pipeline's call."""
    labels = list(pipeline.class_names)[:10] * 4
    images = sample_batches(pipeline, labels, range(len(labels)), len(labels), show_progress=False, **options)
    save_class_samples(torch.cat(list(images)), labels, pipeline.class_names, picture)


def save_final_samples(pipeline: ClassConditionalPipeline, folder: Path, seed: int) -> None:
    """One image of each of the first 16 classes, in one batch, as `folder`/final.npz: what the pipeline must repeat.

    The file holds `images` (n, H, W, C) float32 in [0, 1], `class_labels` and `seeds`; the pipeline's other arguments
    are its defaults.
    """
    labels = list(pipeline.class_names)[:16]
    seeds = [seed + index for index in range(len(labels))]
    pipeline.set_progress_bar_config(desc="final samples")
    images = pipeline(labels, generator=generators(seeds), output_type="np").images
    np.savez(folder / "final.npz", images=images, class_labels=labels, seeds=seeds)


def read_final_samples(folder: Path) -> Tensor:
    """The images of `folder`/final.npz as uint8 (n, C, H, W)."""
    images = torch.from_numpy(np.load(folder / "final.npz")["images"])
    return (images * 255).round().to(torch.uint8).permute(0, 3, 1, 2)


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
