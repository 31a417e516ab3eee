"""Hold the uint8 pixels of a whole data set in memory, go through them in batches, compute their variance."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tokenizer.data.bad_images import BadImages
from tokenizer.data.batches import loader
from tokenizer.data.config import DataConfig
from tokenizer.data.dataset import ImageDataset, as_floats
from tokenizer.data.on_device import drawn_flips
from tokenizer.data.streaming.images import StreamedImages

# Images per batch when all pixels of a data set are read.
PIXEL_BATCH = 256


@dataclass(eq=False, repr=False)
class InMemoryImages(Dataset):
    """An `ImageDataset` in memory; built by `load_into_memory`.

    Items, batches and fingerprint equal those of the data set that was decoded.

    Attributes:
        pixels: (n, channels, image_size, image_size) uint8.
        labels: (n,) int64, of these images.
        source: the data set that was decoded; it records unusable images.
        source_fingerprint: fingerprint of the source.
        flip: whether training sees half of the images mirrored.
    """

    pixels: Tensor
    labels: Tensor
    class_names: list[str]
    name: str
    split: str
    source: ImageDataset
    source_fingerprint: str
    flip: bool = False
    in_memory: ClassVar[bool] = True

    @property
    def is_augmented(self) -> bool:
        """Whether training sees other images than the items: see `augmented`."""
        return self.flip

    @property
    def channels(self) -> int:
        return self.pixels.shape[1]

    @property
    def image_size(self) -> int:
        return self.pixels.shape[2]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        if isinstance(index, list):
            batch = self.pixel_batch(index)
            return batch | {"images": as_floats(batch["images"])}
        return {"images": as_floats(self.pixels[index]), "labels": self.labels[index]}

    def pixel_batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the batch of the indices with the images as uint8."""
        # index_select is several times as fast as pixels[index].
        return {"images": self.pixels.index_select(0, torch.tensor(indices)), "labels": self.labels[indices]}

    def augmented(self, indices: list[int], seed: int, epoch: int) -> dict[str, Tensor]:
        """Return the batch of the indices, and as `flips`, bool (b,), which of them training mirrors in an epoch."""
        return self.pixel_batch(indices) | {"flips": drawn_flips(seed, epoch, torch.tensor(indices))}

    @property
    def bad_images(self) -> BadImages | None:
        """Record of unusable images, which others replace; None if they are errors."""
        return self.source.bad_images

    def try_image(self, index: int) -> None:
        """Raise ImageError if the image at an index of the source is unusable."""
        self.source.try_image(index)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the encoded images, labels, size and channels."""
        return self.source_fingerprint


def pixel_batches(dataset: ImageDataset | InMemoryImages | StreamedImages, num_workers: int) -> Iterable[Tensor]:
    """Load every image once, in order, cropped to the centre, uint8 (PIXEL_BATCH, C, S, S); the last may be smaller."""
    if isinstance(dataset, InMemoryImages):
        return dataset.pixels.split(PIXEL_BATCH)
    return loader(range(len(dataset)), num_workers, batch_size=PIXEL_BATCH, collate_fn=dataset.decode)


def load_into_memory(
    dataset: ImageDataset | StreamedImages,
    config: DataConfig,
    progress: Callable[[Iterable[tuple[Tensor, Tensor]]], Iterable[tuple[Tensor, Tensor]]] = lambda batches: batches,
) -> ImageDataset | InMemoryImages | StreamedImages:
    """Decode a data set into memory if its pixels take at most `config.memory_limit_gib`; else return it unchanged.

    Streamed or randomly cropped images are never held, because no two epochs see the same pixels.

    `progress` wraps the batches, to show the progress of decoding.

    Raises:
        DataError: an image is unusable.
    """
    if isinstance(dataset, StreamedImages) or not bytes_held(dataset, config):
        return dataset
    pixels, labels = torch.empty(_shape(dataset), dtype=torch.uint8), torch.empty_like(dataset.labels)
    targets = zip(pixels.split(PIXEL_BATCH), labels.split(PIXEL_BATCH), strict=True)
    batches = loader(range(len(dataset)), config.num_workers, batch_size=PIXEL_BATCH, collate_fn=dataset.labelled)
    for (target_pixels, target_labels), (batch_pixels, batch_labels) in zip(targets, progress(batches), strict=True):
        target_pixels.copy_(batch_pixels)
        target_labels.copy_(batch_labels)  # the labels of replaced images are those of their replacements
    return InMemoryImages(
        pixels=pixels,
        labels=labels,
        class_names=dataset.class_names,
        name=dataset.name,
        split=dataset.split,
        source=dataset,
        source_fingerprint=dataset.fingerprint(),
        flip=dataset.framing.flip,
    )


def bytes_held(dataset: Dataset, config: DataConfig) -> int:
    """Return the bytes that `load_into_memory` holds of a data set; 0 if it leaves the data set unchanged."""
    size = math.prod(_shape(dataset))
    fits = size <= config.memory_limit_gib * 2**30
    return size if fits and not config.streaming and not dataset.framing.random_crop else 0


def _shape(dataset: Dataset) -> tuple[int, int, int, int]:
    """Return (n, channels, image_size, image_size)."""
    return len(dataset), dataset.channels, dataset.image_size, dataset.image_size


def pixel_variance(batches: Iterable[Tensor]) -> float:
    """Compute the variance of all values of uint8 tensors, mapped to [-1, 1]; exact up to float64 rounding."""
    counts = sum(torch.bincount(batch.flatten(), minlength=256) for batch in batches)
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (counts * values).sum() / counts.sum()
    return ((counts * (values - mean).square()).sum() / counts.sum()).item()
