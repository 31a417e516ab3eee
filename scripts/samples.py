"""Generated images, sampled by a pipeline or read from files: their features, and what a result says of them."""

import hashlib
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from chunks import Chunks, Measure, sharing_weights
from image_sources import ImageSource, write_npz
from jsonargparse import Namespace
from measuring import check_count, environment, extractor_facts
from PIL import Image
from provenance import commit
from reference import features_of
from sampling import SamplingConfig, sample_batches
from stage_one import find_pipeline, load_pipeline
from torch import Tensor, nn

from pipelines.distributions import INCEPTION_SCORE_SPLITS
from pipelines.extractors import Extractor
from pipelines.pictures import save_class_samples, save_samples

DEFAULT_NUMBER = 500
SHOWN = 200  # images from which the picture is made


class PipelineSamples:
    """Samples of the pipeline in a folder, image i from the seed `--seed` + i.

    Attributes:
        number: how many.
        labels: int64 (number,).
        image_size: (height, width).
        facts: what they depend on.
    """

    def __init__(self, folder: str, config: Namespace, output: Path):
        self.pipeline = load_pipeline(folder).to(PartialState().device)
        self.options = SamplingConfig(**config.sampling.as_dict()).options(self.pipeline)
        self.number = check_enough(DEFAULT_NUMBER if config.num_images is None else config.num_images)
        self.labels = class_labels(self.number, len(self.pipeline.class_names), config.labels, config.seed)
        side = self.pipeline.vqvae.config.image_size
        self.image_size = (side, side)
        self._seed, self._batch_size, self._output = config.seed, config.batch_size, output
        self.facts: dict[str, Any] = {
            "seed": config.seed,
            "labels": config.labels,
            "classes": len(self.pipeline.class_names),
            "sampling": SamplingConfig.all_options(self.pipeline) | self.options,
            "pipeline": folder_fingerprint(find_pipeline(folder)),
            "sample_size": side,
        }
        if scheduler := getattr(self.pipeline, "scheduler", None):
            of_scheduler = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
            self.facts["scheduler"] = {"class": type(scheduler).__name__, **of_scheduler}
        form = config.save_images
        self._kept = None if form is None else output / ("samples.npz" if form == "npz" else "images")

    def measured(self, extractor: Extractor) -> Chunks:
        """Their features, and the images that are shown or kept.

        Raises:
            ValueError: kept images of another run are in the way.
        """
        settings = self.facts | extractor_facts(extractor) | environment()
        settings |= {"commit": commit(), "kept": self._kept is not None}
        chunks = Chunks(self._output, "samples", settings, self.number, self._batch_size)
        # Where this measurement is unfinished they are its own.
        if self._kept is not None and self._kept.exists() and not chunks.folder.exists():
            raise ValueError(f"{self._kept} is there already; remove it, or name another --output")
        chunks.compute(lambda: self._measure(extractor))
        return chunks

    def write_images(self, chunks: Chunks) -> None:
        """The picture of the first samples, and all of them where they are kept."""
        shown = torch.stack(list(islice(_images(chunks), SHOWN)))
        picture = self._output / "generation.png"
        save_class_samples(shown, self.labels[: len(shown)], self.pipeline.class_names, picture)
        if self._kept is None:
            return
        if self._kept.suffix == ".npz":
            write_npz(self._kept, _images(chunks), self.labels)
        else:
            write_pngs(self._kept, _images(chunks), self.labels)

    def _measure(self, shared_extractor: Extractor) -> Measure:
        """The function that samples and measures the images of a range, with networks of its own thread."""
        modules = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        pipeline = sharing_weights(self.pipeline, *modules)
        extractor = sharing_weights(shared_extractor.to(PartialState().device), shared_extractor)

        def measure(chunk: range) -> dict[str, Tensor]:
            seeds = range(self._seed + chunk.start, self._seed + chunk.stop)
            labels = self.labels[chunk.start : chunk.stop].tolist()
            made = sample_batches(pipeline, labels, seeds, len(chunk), show_progress=False, **self.options)
            images = torch.cat(list(made))
            features, logits = extractor.extract(images)
            values = {"features": features} | ({} if logits is None else {"logits": logits})
            return values | ({"images": images} if self._kept is not None or chunk.start < SHOWN else {})

        return measure


class FileSamples:
    """Images that were made elsewhere; attributes as `PipelineSamples`, labels None where the files have none."""

    def __init__(self, source: ImageSource, config: Namespace, output: Path):
        there = len(source)
        self.number = check_enough(check_count(config.num_images, there, f"images in {source.name}"))
        self.source = source.first(self.number)
        self.labels: Tensor | None = getattr(self.source, "labels", None)
        self.image_size = source.image_size
        self._output = output
        self.facts = {"samples_fingerprint": self.source.fingerprint, "sample_size": source.image_size}

    def measured(self, extractor: Extractor) -> Chunks:
        """Their features."""
        return features_of(self.source, extractor, self._output)

    def write_images(self, chunks: Chunks) -> None:
        """The picture of the first samples."""
        save_samples(self.source.batch(range(min(self.number, 100))), self._output / "generation.png")


def check_enough(number: int) -> int:
    """The number of samples. ValueError where it is too small for the metrics."""
    if number < INCEPTION_SCORE_SPLITS:
        raise ValueError(f"the metrics need {INCEPTION_SCORE_SPLITS} images or more, got num_images {number}")
    return number


def class_labels(number: int, classes: int, scheme: str, seed: int) -> Tensor:
    """int64 (number,): `balanced`, one class after the other, or `random`, drawn from `seed`."""
    if scheme == "balanced":
        return torch.arange(number) % classes
    return torch.from_numpy(np.random.default_rng(seed).integers(classes, size=number))


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of all configs and weights in a pipeline's folder."""
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("*.json"), *folder.rglob("*.safetensors")]):
        with file.open("rb") as content:
            digest.update(file.relative_to(folder).as_posix().encode() + b" ")
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def write_pngs(folder: Path, images: Iterator[Tensor], labels: Tensor) -> None:
    """PNG files named by index and class; the folder is there when all of them are."""
    unfinished = folder.with_name(f".{folder.name}.tmp")
    for leftover in (unfinished, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()  # (H, W, 3), or (H, W) in grey
        Image.fromarray(pixels).save(unfinished / f"{index:06d}-class-{label:04d}.png")
    unfinished.replace(folder)


def _images(chunks: Chunks) -> Iterator[Tensor]:
    return (image for values in chunks.read("images") for image in values.get("images", ()))
