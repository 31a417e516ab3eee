"""Generated images, sampled by a pipeline or read from files, and their features."""

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
SHOWN = 200  # images in the picture


class PipelineSamples:
    """Samples of a pipeline; image i has the seed `--seed` + i.

    Attributes:
        number: of samples.
        labels: int64 (number,).
        image_size: (height, width).
        facts: all that the samples depend on, as JSON.
        are_digits: whether class i is the digit i, so that the digits' classifier can read the samples.
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

    def features(self, extractor: Extractor) -> ResumableMap:
        """Sample the images, and compute their features; keep the images that are shown or saved.

        Raises:
            ValueError: the folder of saved images holds those of another run.
        """
        settings = self.facts | extractor_facts(extractor) | environment()
        settings |= {"commit": commit(), "kept": self._kept is not None}
        chunks = ResumableMap(self._output, "samples", settings, self.number, self._batch_size)
        if self._kept is not None and PartialState().is_main_process:
            claim(self._kept, chunks.folder)
        chunks.compute(lambda: self._make_worker(extractor))
        return chunks

    def write_images(self, chunks: ResumableMap) -> None:
        """Draw the first samples, and write all of them if --save_images asks for that."""
        shown = torch.stack(list(islice(images_of(chunks), SHOWN)))
        picture = self._output / "generation.png"
        save_class_samples(shown, self.labels[: len(shown)], self.pipeline.class_names, picture)
        if self._kept is None:
            return
        claim(self._kept, chunks.folder)
        _, write = FORMATS[self._form]
        write(self._kept, images_of(chunks), self.labels, range(self._seed, self._seed + self.number))

    def _make_worker(self, shared_extractor: Extractor) -> Measure:
        """Make a thread's function that samples and measures the images of a range, with its own extractor."""
        extractor = copy_sharing_weights(shared_extractor, shared_extractor)

        def measure(chunk: range) -> dict[str, Tensor]:
            images = self.sampler.sample(self.labels, self._seed, chunk)
            features, logits = extractor.extract(images)
            values = {"features": features} | ({} if logits is None else {"logits": logits})
            return values | ({"images": images} if self._kept is not None or chunk.start < SHOWN else {})

        return measure


class FileSamples:
    """Images in files; attributes as `PipelineSamples`, but labels are None if the files have none."""

    def __init__(self, source: ImageSource, config: Namespace, output: Path):
        self.number = check_enough(check_count(config.num_images, len(source), f"images in {source.name}"))
        self.source = source.first(self.number)
        self.labels: Tensor | None = getattr(self.source, "labels", None)
        self.image_size = source.image_size
        self._output = output
        self.are_digits = config.data.name == "digits"
        self.facts = {"samples_fingerprint": self.source.fingerprint, "sample_size": source.image_size}

    def features(self, extractor: Extractor) -> ResumableMap:
        """Compute the features of the images."""
        return features_of(self.source, extractor, self._output)

    def write_images(self, chunks: ResumableMap) -> None:
        """Draw the first samples."""
        save_samples(self.source.batch(range(min(self.number, 100))), self._output / "generation.png")


def check_enough(number: int) -> int:
    """Return the number of samples. ValueError if it is too small for the metrics."""
    if number < INCEPTION_SCORE_SPLITS:
        raise ValueError(f"the metrics need {INCEPTION_SCORE_SPLITS} images or more, got num_images {number}")
    return number
