"""Where images that are measured come from: a data set, a folder of PNG files, an npz as ADM's evaluator reads it.

Each is a sequence of uint8 (C, H, W) tensors of one size, read when asked for, with a fingerprint of its contents.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from npz_headers import no_npz, npz_headers
from torch import Tensor

from pipelines.metrics import to_uint8
from pipelines.protocols import Protocol
from tokenizer.data import ImageDataset
from tokenizer.image_files import ImageError, convert, open_image, reason_of
from tokenizer.labels import MOST_CLASSES


class ImageSource(ABC):
    """Base: a subclass sets `name` and `image_size` (height, width)."""

    name: str
    image_size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """uint8 (C, H, W)."""

    def batch(self, chunk: range) -> Tensor:
        """uint8 (b, C, H, W)."""
        return torch.stack([self[index] for index in chunk])

    def first(self, number: int) -> "ImageSource":
        """The first `number` images."""
        part = copy.copy(self)
        vars(part).pop("fingerprint", None)
        part.keep_first(number)
        return part

    @abstractmethod
    def keep_first(self, number: int) -> None:
        """Forgets all images but the first `number`."""

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the shape and the pixels of all images in order."""
        digest = hashlib.sha256(f"{len(self)} ".encode())
        for image in self:
            digest.update(f"{tuple(image.shape)} ".encode() + image.numpy().tobytes())
        return digest.hexdigest()


class DataSetImages(ImageSource):
    """A split as it is read for training, the first `number` images of it."""

    def __init__(self, images: ImageDataset, number: int | None = None):
        self.images = images
        self.name = f"{images.split} split of {images.name}"
        self.image_size = (images.image_size, images.image_size)
        self._number = len(images) if number is None else min(number, len(images))

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Tensor:
        return to_uint8(self.images[index]["images"])

    def keep_first(self, number: int) -> None:
        """Forgets all images but the first `number`."""
        self._number = number

    @cached_property
    def fingerprint(self) -> str:
        """That of the data set, with the number of images used where it is not all."""
        whole = self.images.fingerprint()
        return whole if len(self) == len(self.images) else f"{whole}[:{len(self)}]"


class ProtocolImages(DataSetImages):
    """A split in the bytes that a protocol of reconstructions makes of it."""

    def __init__(self, images: ImageDataset, number: int, protocol: Protocol):
        super().__init__(images, number)
        self.protocol = protocol

    def __getitem__(self, index: int) -> Tensor:
        return self.protocol.to_bytes(self.images[index]["images"][None])[0]

    @cached_property
    def fingerprint(self) -> str:
        """That of the split, with what the protocol does to its bytes."""
        split = super().fingerprint
        altered = f" {self.protocol.quantisation}, {self.protocol.storage}"
        return split + altered if self.protocol.alters_images else split


class FolderImages(ImageSource):
    """The PNG files of a folder and of the folders in it, by name.

    Raises:
        ValueError: no PNG files, files that are no images, or images of several kinds; when read, a broken file.
    """

    def __init__(self, folder: Path):
        self.name = str(folder)
        self.files = sorted(folder.rglob("*.png"))
        if not self.files:
            others = sorted({file.suffix or "no suffix" for file in folder.rglob("*") if file.is_file()})
            found = f"it holds files of {', '.join(others)}" if others else "it is empty"
            raise ValueError(
                f"folder {str(folder)!r} has no PNG files: {found}; save the images as PNG, which loses nothing"
            )
        kinds: dict[tuple[int, int, int], Path] = {}
        for file in self.files:
            with _opened(file) as image:
                grey = image.mode in ("1", "L") or image.mode.startswith("I")
                kinds.setdefault((1 if grey else 3, image.height, image.width), file)
        if len(kinds) > 1:
            (first, file), (second, other) = list(kinds.items())[:2]
            raise ValueError(
                f"folder {str(folder)!r} holds several kinds of images: {file.name} has (channels, height, width) "
                f"{first}, {other.name} has {second}; make them one kind"
            )
        ((self._channels, *size),) = kinds
        self.image_size = tuple(size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = self.files[index]
        with _opened(file) as image:
            try:
                image.load()
            except Exception as error:  # what a decoder raises on broken data is open-ended
                raise _broken(file, error) from error
            pixels = np.asarray(convert(image, self._channels, f"image {file}"))
        return torch.from_numpy(np.array(pixels)).reshape(*self.image_size, self._channels).permute(2, 0, 1)

    def keep_first(self, number: int) -> None:
        """Forgets all images but the first `number`."""
        self.files = self.files[:number]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' contents in order: 50,000 files need not be decoded for it."""
        digest = hashlib.sha256(f"{len(self)} ".encode())
        for file in self.files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()


class NpzImages(ImageSource):
    """`arr_0` of an npz, uint8 (N, H, W, C), C 1 or 3; `labels` are `arr_1`, int64 (N,), where it is there.

    An array that numpy.savez has stored is read where it lies; one that is compressed is read into memory.

    Raises:
        ValueError: no such array, or of another kind.
    """

    def __init__(self, file: Path):
        self.name = str(file)
        headers = npz_headers(file)
        shape, dtype = headers["arr_0"].shape, headers["arr_0"].dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape or headers["arr_0"].by_columns:
            order = " in Fortran order" * headers["arr_0"].by_columns
            raise ValueError(f"arr_0 of {file} is {dtype} {shape}{order}, not uint8 (N, H, W, 3 or 1)")
        if "arr_1" in headers and headers["arr_1"].shape != shape[:1]:
            raise ValueError(f"arr_1 of {file} has shape {headers['arr_1'].shape}, not one label per image")
        if "arr_1" in headers and headers["arr_1"].dtype.kind not in "iu":
            raise ValueError(f"arr_1 of {file} is {headers['arr_1'].dtype}, not integers; save the labels as int64")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                self.images = headers["arr_0"].mapped(file)
                self.images = arrays["arr_0"] if self.images is None else self.images
                labels = arrays["arr_1"] if "arr_1" in headers else None
        except Exception as error:
            raise no_npz(file, error) from error
        if labels is not None and not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
            raise ValueError(f"arr_1 of {file} has labels {labels.min()} to {labels.max()}, which are no classes")
        self.labels = None if labels is None else torch.from_numpy(labels.astype(np.int64))
        self.image_size = (shape[1], shape[2])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)

    def keep_first(self, number: int) -> None:
        """Forgets all images but the first `number`."""
        self.images, self.labels = self.images[:number], None if self.labels is None else self.labels[:number]


def _opened(file: Path) -> PIL.Image.Image:
    """The image, its pixels not yet read. ValueError: it is none that can be."""
    if not file.is_file():  # to open a pipe is to wait for its other end
        raise _broken(file, ValueError("it is no file"))
    try:
        return open_image(file, f"image {file}")
    except ImageError:
        raise
    except Exception as error:  # of broken headers, and of sizes that PIL refuses itself
        raise _broken(file, error) from error


def _broken(file: Path, error: Exception) -> ValueError:
    return ValueError(f"image {file} is broken: {reason_of(error)}; remove it or save it again")
