"""The images and labels of one split, by index, decoded on demand."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from tokenizer.data.bad_images import BadImages, Item
from tokenizer.data.decoding import ImageError, convert
from tokenizer.data.framing import Framing, uniform_draws
from tokenizer.data.image_column import ImageColumn

# Above this number of images the fingerprint reads only a part: ImageNet would be 140 GB before the first step.
FINGERPRINT_WHOLE = 100_000
FINGERPRINT_PART = 10_000

# Hashed instead of the length of an image that cannot be read and is skipped.
UNREADABLE = b"\xff" * 8


class FramedImages(Dataset):
    """Images of one size, with class labels."""

    framing: Framing
    class_names: list[str]
    bad_images: BadImages | None  # None where they are errors

    @property
    def image_size(self) -> int:
        return self.framing.image_size

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def _usable(self, index: int, read: Callable[[int], Item]) -> Item:
        """Return `read` of the index, or of the index that replaces it."""
        return read(index) if self.bad_images is None else self.bad_images.usable(index, read)


@dataclass(eq=False, repr=False)
class ImageDataset(FramedImages):
    """Images and labels by index; built by `load_images`.

    Item: {"images": float32 (channels, image_size, image_size) in [-1, 1], "labels": int64 ()}; a list of indices gives
    the batch of their items. Images are rotated upright by their EXIF orientation, transparency becomes white, 16-bit
    grey is rounded to 8 bits, the image is resized (bicubic, antialiased) as `framing` says and the centre is cropped.
    Only `augmented` uses random numbers. `labels` are all labels, int64 (n,). With `bad_images`, the next usable image
    replaces an unusable one, with its own label and its own random numbers.

    Raises:
        DataError: from an item: its image cannot be read or decoded, or is smaller than `image_size`.
    """

    encoded: ImageColumn
    rows: np.ndarray  # rows of the column, one per item
    labels: torch.Tensor
    class_names: list[str]
    framing: Framing
    channels: int
    name: str
    split: str
    bad_images: BadImages | None = None

    @property
    def is_augmented(self) -> bool:
        """Whether training sees other images than the items: see `augmented`."""
        return self.framing.is_random

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | list[int]) -> dict[str, torch.Tensor]:
        pixels, labels = self.labelled(index)
        return {"images": as_floats(pixels), "labels": labels}

    def pixel_batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return the batch of the indices with the images as uint8."""
        pixels, labels = self.labelled(indices)
        return {"images": pixels, "labels": labels}

    def augmented(self, indices: list[int], seed: int, epoch: int) -> dict[str, torch.Tensor]:
        """Return the batch of the indices as training sees it in an epoch, as uint8: cropped and flipped at random."""
        draws = dict(zip(indices, uniform_draws(seed, epoch, indices), strict=True))

        def read(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            drawn = draws[index] if index in draws else uniform_draws(seed, epoch, [index])[0]
            return self._pixels(index, drawn), self.labels[index]

        pixels, labels = zip(*(self._usable(index, read) for index in indices), strict=True)
        return {"images": torch.stack(pixels), "labels": torch.stack(labels)}

    def decode(self, index: int | list[int]) -> torch.Tensor:
        """Decode the image, uint8 (channels, image_size, image_size), or (b, ...) for a list. Raises as an item."""
        return self.labelled(index)[0]

    def labelled(self, index: int | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode the image as `decode` does, with its label, int64 (); for a list of b indices (b, ...) and (b,)."""
        if isinstance(index, list):
            pixels, labels = zip(*map(self.labelled, index), strict=True)
            return torch.stack(pixels), torch.stack(labels)
        return self._usable(index, lambda usable: (self._pixels(usable), self.labels[usable]))

    def try_image(self, index: int) -> None:
        """Raise ImageError if the image at an index is unusable."""
        self._pixels(index)

    def _pixels(self, index: int, draws: np.ndarray | None = None) -> torch.Tensor:
        image, where = self.encoded.decode(self.rows[index])
        image = convert(image, self.channels, where)  # rebinding frees a large original
        return framed_pixels(image, where, self.framing, draws)

    def fingerprint(self) -> str:
        """Compute the SHA-256 (hex) of all encoded images in order, all labels, the size and the channels; cached.

        For more than `FINGERPRINT_WHOLE` images, the bytes of `FINGERPRINT_PART` evenly spaced images and the lengths
        of all are hashed.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.image_size} {self.channels} {len(self)} ".encode())
        if self.framing.resize_to is not None:
            digest.update(f"{self.framing.resize_to} ".encode())
        rows_read = self.rows
        if len(self) > FINGERPRINT_WHOLE:
            digest.update(self.encoded.sizes(self.rows, self.bad_images is not None).astype("<i8").tobytes())
            rows_read = self.rows[np.linspace(0, len(self) - 1, FINGERPRINT_PART).astype(np.int64)]
        for row in rows_read:
            try:
                encoded, _ = self.encoded.read(row)
            except ImageError:
                if self.bad_images is None:
                    raise
                digest.update(UNREADABLE)
                continue
            digest.update(len(encoded).to_bytes(8, "little"))  # so that bytes cannot move between neighbours
            digest.update(encoded)
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def framed_pixels(
    image: PIL.Image.Image, where: str, framing: Framing, draws: np.ndarray | None = None
) -> torch.Tensor:
    """Frame an L or RGB image of any size: uint8 (1 or 3, image_size, image_size). ImageError names `where`."""
    image = framing.apply(image, where, draws)
    pixels = np.asarray(image).reshape(framing.image_size, framing.image_size, -1).transpose(2, 0, 1)
    return torch.from_numpy(np.array(pixels, order="C"))


def as_floats(pixels: torch.Tensor) -> torch.Tensor:
    """Map uint8 of any shape to float32 in [-1, 1]: the same values on every device."""
    # CUDA replaces the division by a number by a product with its reciprocal, which rounds differently; the division by
    # a tensor remains one.
    divisor = 127.5 if pixels.device.type == "cpu" else torch.full((), 127.5, device=pixels.device)
    return pixels.float().div_(divisor).sub_(1)
