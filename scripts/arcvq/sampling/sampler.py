"""Sample a saved pipeline in chunks: image i is a function of its label, its seed and the options."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from accelerate import PartialState
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from arcvq.compute.resumable import ResumableMap
from arcvq.runs.results import find_pipeline, load_pipeline
from arcvq.sampling.batches import sample_batches
from arcvq.sampling.options import SamplingConfig, SpeedConfig
from pipelines.class_conditional import ClassConditionalPipeline


class Sampler:
    """A loaded pipeline with its sampling options; image i has the seed `seed` + i.

    Args:
        folder: the pipeline's folder, or its run folder.
        sampling: how the pipeline samples.
        speed: how it computes.

    Attributes:
        pipeline: the pipeline, on this process's device.
        facts: all that the samples depend on except labels and seeds, as JSON.
    """

    def __init__(self, folder: str, sampling: SamplingConfig, speed: SpeedConfig):
        if not PartialState().is_main_process:
            diffusers_logging.disable_progress_bar()
        self.pipeline: ClassConditionalPipeline = load_pipeline(folder).to(PartialState().device)
        self._options = sampling.apply(self.pipeline)
        speed.apply(self.pipeline)
        self.facts: dict[str, Any] = {
            "classes": len(self.pipeline.class_names),
            "sampling": SamplingConfig.all_options(self.pipeline) | self._options,
            "speed": asdict(speed),
            "pipeline": folder_fingerprint(folder),
            "sample_size": self.pipeline.vqvae.config.image_size,
        }
        if scheduler := getattr(self.pipeline, "scheduler", None):
            of_scheduler = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
            self.facts["scheduler"] = {"class": type(scheduler).__name__, **of_scheduler}

    def sample(self, labels: Tensor, seed: int, chunk: range) -> Tensor:
        """Sample the images of a range, uint8 (b, C, H, W); several threads may call this at once.

        Args:
            labels: the labels of all images, int64 (n,).
            seed: the seed of image 0.
            chunk: the range of images to sample.
        """
        seeds = range(seed + chunk.start, seed + chunk.stop)
        wanted = labels[chunk.start : chunk.stop].tolist()
        images = sample_batches(self.pipeline, wanted, seeds, len(chunk), show_progress=False, **self._options)
        return torch.cat(list(images))


def folder_fingerprint(folder: str) -> str:
    """Hash all configs and weights of a pipeline with SHA-256 (hex); `folder` may be its run folder."""
    pipeline, digest = find_pipeline(folder), hashlib.sha256()
    index = json.loads((pipeline / "model_index.json").read_text())
    parts = [pipeline / name for name, value in index.items() if isinstance(value, list)]
    # Samples and results may lie in the same folder; they do not belong to the pipeline.
    files = [file for part in parts for ending in ("*.json", "*.safetensors") for file in part.glob(ending)]
    for file in sorted([pipeline / "model_index.json", *files]):
        with file.open("rb") as content:
            digest.update(file.relative_to(pipeline).as_posix().encode() + b" ")
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def images_of(chunks: ResumableMap) -> Iterator[Tensor]:
    """Yield the stored images of all chunks one by one, uint8 (C, H, W)."""
    return (image for values in chunks.read("images") for image in values.get("images", ()))
