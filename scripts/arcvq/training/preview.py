"""Draw samples of a prior in training, and store the samples that its saved pipeline must repeat."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvq.compute.precision import full_float32
from arcvq.sampling.batches import generators, sample_batches
from pipelines.class_conditional import ClassConditionalPipeline
from pipelines.figures.grids import save_class_samples


@full_float32()
def save_preview(pipeline: ClassConditionalPipeline, picture: Path, **options: Any) -> None:
    """Four images of each of the first 10 classes, of seeds 0 to 39; `options` are those of the pipeline's call."""
    labels = list(pipeline.class_names)[:10] * 4
    images = sample_batches(pipeline, labels, range(len(labels)), len(labels), show_progress=False, **options)
    save_class_samples(torch.cat(list(images)), labels, pipeline.class_names, picture)


@full_float32()
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
