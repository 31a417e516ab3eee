"""Generated images, sampled by a pipeline or read from files: their features, and what a result says of them."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from jsonargparse import Namespace
from torch import Tensor

from arcvq.cli.provenance import commit, environment
from arcvq.compute.resumable import Measure, ResumableMap, copy_sharing_weights
from arcvq.evaluation.image_sources import ImageSource
from arcvq.evaluation.networks import check_count, extractor_facts
from arcvq.evaluation.reference import features_of
from arcvq.sampling.labels import class_labels
from arcvq.sampling.sampler import Sampler, images_of
from arcvq.sampling.writers import FORMATS, claim
from pipelines.figures.grids import save_class_samples, save_samples
from pipelines.metrics.distributions import INCEPTION_SCORE_SPLITS
from pipelines.metrics.extractors import Extractor

DEFAULT_NUMBER = 500
SHOWN = 200  # images from which the picture is made


class PipelineSamples:
    """Samples of the pipeline in a folder, image i from the seed `--seed` + i.

    Attributes:
        number: how many.
        labels: int64 (number,).
        image_size: (height, width).
        facts: what they depend on.
        are_digits: whether class i is the digit i, which the digits' classifier knows.
    """

    def __init__(self, folder: str, config: Namespace, output: Path):
        self.sampler = Sampler(folder, config.sampling, config.speed)
        self.pipeline = self.sampler.pipeline
        self.number = check_enough(DEFAULT_NUMBER if config.num_images is None else config.num_images)
        self.labels = class_labels(self.number, list(self.pipeline.class_names), config.labels, config.seed)
        side = self.pipeline.vqvae.config.image_size
        self.image_size = (side, side)
        self._seed, self._batch_size, self._output = config.seed, config.batch_size, output
        self.facts: dict[str, Any] = {"seed": config.seed, "labels": config.labels} | self.sampler.facts
        self.are_digits = list(self.pipeline.class_names.values()) == [str(digit) for digit in range(10)]
        self._form = config.save_images
        self._kept = None if self._form is None else output / FORMATS[self._form][0]

    def measured(self, extractor: Extractor) -> ResumableMap:
        """Their features, and the images that are shown or kept.

        Raises:
            ValueError: kept images of another run are in the way.
        """
        settings = self.facts | extractor_facts(extractor) | environment()
        settings |= {"commit": commit(), "kept": self._kept is not None}
        chunks = ResumableMap(self._output, "samples", settings, self.number, self._batch_size)
        if self._kept is not None and PartialState().is_main_process:
            claim(self._kept, chunks.folder)
        chunks.compute(lambda: self._measure(extractor))
        return chunks

    def write_images(self, chunks: ResumableMap) -> None:
        """The picture of the first samples, and all of them where they are kept."""
        shown = torch.stack(list(islice(images_of(chunks), SHOWN)))
        picture = self._output / "generation.png"
        save_class_samples(shown, self.labels[: len(shown)], self.pipeline.class_names, picture)
        if self._kept is None:
            return
        claim(self._kept, chunks.folder)
        _, write = FORMATS[self._form]
        write(self._kept, images_of(chunks), self.labels, range(self._seed, self._seed + self.number))

    def _measure(self, shared_extractor: Extractor) -> Measure:
        """The function that samples and measures the images of a range, with an extractor of its own thread."""
        extractor = copy_sharing_weights(shared_extractor.to(PartialState().device), shared_extractor)

        def measure(chunk: range) -> dict[str, Tensor]:
            images = self.sampler.sample(self.labels, self._seed, chunk)
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
        self.are_digits = config.data.name == "digits"
        self.facts = {"samples_fingerprint": self.source.fingerprint, "sample_size": source.image_size}

    def measured(self, extractor: Extractor) -> ResumableMap:
        """Their features."""
        return features_of(self.source, extractor, self._output)

    def write_images(self, chunks: ResumableMap) -> None:
        """The picture of the first samples."""
        save_samples(self.source.batch(range(min(self.number, 100))), self._output / "generation.png")


def check_enough(number: int) -> int:
    """The number of samples. ValueError where it is too small for the metrics."""
    if number < INCEPTION_SCORE_SPLITS:
        raise ValueError(f"the metrics need {INCEPTION_SCORE_SPLITS} images or more, got num_images {number}")
    return number
