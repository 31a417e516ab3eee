"""Sample a pipeline in batches: labels, seeds => uint8 images."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pipelines.class_conditional import ClassConditionalPipeline


def sample_batches(
    pipeline: ClassConditionalPipeline,
    class_labels: Sequence[int],
    seeds: Sequence[int],
    batch_size: int,
    show_progress: bool = True,
    **options: Any,
) -> Iterator[Tensor]:
    """Yield uint8 images (b, C, H, W) in order; image i is a function of class_labels[i], seeds[i] and options.

    Raises:
        ValueError: a label is no class, or the model returns NaN or infinity.
    """
    pipeline.set_progress_bar_config(disable=True)
    # All labels are checked before the first batch, so that a wrong one costs no time.
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
    """Make one generator per seed, on the CPU, so that every device gets the same noise."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
