"""Decoded images: the uint8 pixels of a whole data set in memory, their variance, pixels as floats."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(eq=False, repr=False)
class DecodedImages(Dataset):
    """An `ImageDataset` in memory; built by `hold_in_memory`.

    Items, batches and fingerprint are those of the data set that was decoded.

    Attributes:
        pixels: (n, channels, image_size, image_size) uint8.
        labels: (n,) int64.
        source_fingerprint: what `fingerprint` of the decoded data set says.
    """

    pixels: Tensor
    labels: Tensor
    class_names: list[str]
    name: str
    split: str
    source_fingerprint: str

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
        # For a list index_select is several times as quick as pixels[index].
        pixels = self.pixels.index_select(0, torch.tensor(index)) if isinstance(index, list) else self.pixels[index]
        return {"images": as_floats(pixels), "labels": self.labels[index]}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the encoded images, labels, size and channels."""
        return self.source_fingerprint


def as_floats(pixels: Tensor) -> Tensor:
    """uint8 of any shape -> float32 of the same shape in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def pixel_variance(batches: Iterable[Tensor]) -> float:
    """Variance of all values of uint8 tensors, mapped to [-1, 1]; exact but for the rounding of float64."""
    counts = sum(torch.bincount(batch.flatten(), minlength=256) for batch in batches)
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    mean = (counts * values).sum() / counts.sum()
    return ((counts * (values - mean).square()).sum() / counts.sum()).item()
