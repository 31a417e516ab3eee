"""The images and labels of one split, by index, decoded when they are asked for."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from tokenizer.framing import Framing, uniform_draws
from tokenizer.image_files import ImageColumn, convert

# Of more images than this the fingerprint reads the bytes of a part: all of ImageNet would be 140 GB before step one.
FINGERPRINT_WHOLE = 100_000
FINGERPRINT_PART = 10_000


class FramedImages(Dataset):
    """Images of one size, in classes."""

    framing: Framing
    class_names: list[str]

    @property
    def image_size(self) -> int:
        return self.framing.image_size

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(eq=False, repr=False)
class ImageDataset(FramedImages):
    """Images and labels by index; built by `load_images`.

    Item: {"images": float32 (channels, image_size, image_size) in [-1, 1], "labels": int64 ()}; of a list of indices,
    the batch of their items. Images are turned upright by their EXIF orientation, transparency shows white, 16-bit grey
    is rounded to 8 bits, the image is resized (bicubic, antialiased) as `framing` says and the centre is cropped.
    What is drawn at random comes from `augmented` alone. `labels` are all labels, int64 (n,).

    Raises:
        DataError: from an item: its image cannot be read or decoded, or is smaller than `image_size`.
    """

    encoded: ImageColumn
    rows: np.ndarray  # of the column, one for each item
    labels: torch.Tensor
    class_names: list[str]
    framing: Framing
    channels: int
    name: str
    split: str

    @property
    def is_augmented(self) -> bool:
        """Whether training sees other images than the items: `augmented`."""
        return self.framing.is_random

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | list[int]) -> dict[str, torch.Tensor]:
        return {"images": as_floats(self.decode(index)), "labels": self.labels[index]}

    def augmented(self, indices: list[int], seed: int, epoch: int) -> dict[str, torch.Tensor]:
        """The batch of the indices as training sees it in an epoch: with random crops and flips where asked for."""
        draws = uniform_draws(seed, epoch, indices)
        images = torch.stack([self._pixels(index, drawn) for index, drawn in zip(indices, draws, strict=True)])
        return {"images": as_floats(images), "labels": self.labels[indices]}

    def decode(self, index: int | list[int]) -> torch.Tensor:
        """The image, uint8 (channels, image_size, image_size); of a list of b indices, (b, ...). Raises as an item."""
        if isinstance(index, list):
            return torch.stack([self.decode(one) for one in index])
        return self._pixels(index)

    def _pixels(self, index: int, draws: np.ndarray | None = None) -> torch.Tensor:
        image, where = self.encoded.decode(self.rows[index])
        return framed_pixels(image, where, self.framing, self.channels, draws)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all encoded images in order, all labels, the size and the channels; computed once.

        Of more than `FINGERPRINT_WHOLE` images: of the lengths of all and the bytes of `FINGERPRINT_PART`, evenly
        spaced.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.image_size} {self.channels} {len(self)} ".encode())
        if self.framing.resize_to is not None:
            digest.update(f"{self.framing.resize_to} ".encode())
        read = self.rows
        if len(self) > FINGERPRINT_WHOLE:
            digest.update(self.encoded.sizes(self.rows).astype("<i8").tobytes())
            read = self.rows[np.linspace(0, len(self) - 1, FINGERPRINT_PART).astype(np.int64)]
        for row in read:
            encoded, _ = self.encoded.read(row)
            digest.update(len(encoded).to_bytes(8, "little"))  # so that bytes cannot move between neighbours
            digest.update(encoded)
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def framed_pixels(
    image: PIL.Image.Image, where: str, framing: Framing, channels: int, draws: np.ndarray | None = None
) -> torch.Tensor:
    """A decoded image of any mode and size -> uint8 (channels, image_size, image_size). DataError names `where`."""
    image = framing.apply(convert(image, channels, where), where, draws)
    pixels = np.asarray(image).reshape(framing.image_size, framing.image_size, channels).transpose(2, 0, 1)
    return torch.from_numpy(np.array(pixels, order="C"))


def as_floats(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 of any shape -> float32 of the same shape in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)
