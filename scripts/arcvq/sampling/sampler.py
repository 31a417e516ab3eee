"""Samples of a saved pipeline: image i is a function of its label, its seed and the options => uint8 images."""

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
from arcvq.sampling.options import SamplingConfig, SpeedConfig, sample_batches
from pipelines.class_conditional import ClassConditionalPipeline


class Sampler:
    """A pipeline set up to sample labels that are given, image i with the seed `seed` + i.

    Args:
        folder: of the pipeline, or its run folder.
        sampling: how it samples.
        speed: how it computes.

    Attributes:
        pipeline: on this process's device.
        facts: what the samples depend on beside labels and seeds.
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
        """The images of a range, uint8 (b, C, H, W); several threads may ask for theirs at once.

        Args:
            labels: of all images, (n,) int64.
            seed: of image 0.
            chunk: which of them.
        """
        seeds = range(seed + chunk.start, seed + chunk.stop)
        wanted = labels[chunk.start : chunk.stop].tolist()
        made = sample_batches(self.pipeline, wanted, seeds, len(chunk), show_progress=False, **self._options)
        return torch.cat(list(made))


def folder_fingerprint(folder: str) -> str:
    """SHA-256 (hex) of all configs and weights in a pipeline's folder, or in that of its run."""
    pipeline, digest = find_pipeline(folder), hashlib.sha256()
    index = json.loads((pipeline / "model_index.json").read_text())
    parts = [pipeline / name for name, value in index.items() if isinstance(value, list)]
    # Samples and results may lie in the same folder, and are no part of the pipeline.
    files = [file for part in parts for ending in ("*.json", "*.safetensors") for file in part.glob(ending)]
    for file in sorted([pipeline / "model_index.json", *files]):
        with file.open("rb") as content:
            digest.update(file.relative_to(pipeline).as_posix().encode() + b" ")
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def images_of(chunks: ResumableMap) -> Iterator[Tensor]:
    """The images of all chunks that kept theirs, one by one, uint8 (C, H, W)."""
    return (image for values in chunks.read("images") for image in values.get("images", ()))
