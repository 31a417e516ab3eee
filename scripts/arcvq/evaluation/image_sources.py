"""Sources of images to measure: a data set, a folder of image files, an npz as ADM's evaluator reads it.

Each is a sequence of uint8 (C, H, W) tensors of one size, read on access, with a fingerprint of its contents.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arcvq.cli.announced_data import announce
from arcvq.evaluation.npz import no_npz, npz_headers
from arcvq.runs.settings import ARTEFACTS
from pipelines.metrics import to_uint8
from pipelines.metrics.protocols import Protocol
from tokenizer.data import ImageDataset
from tokenizer.data.dataset import as_floats
from tokenizer.data.decoding import check_file, convert, decode_image, image_header, read_file
from tokenizer.data.folders.files import find_files
from tokenizer.data.kinds import is_grey
from tokenizer.data.labels import MOST_CLASSES

# arcvq sample writes this file next to its images.
SAMPLES = "samples.json"

_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")


class ImageSource(ABC):
    """Base class of the sources; a subclass sets `name` and `image_size` (height, width)."""

    name: str
    image_size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def __getitem__(self, index: int) -> Tensor:
        """Read one image, uint8 (C, H, W)."""

    def batch(self, chunk: range) -> Tensor:
        """Read the images of a range, uint8 (b, C, H, W)."""
        return torch.stack([self[index] for index in chunk])

    def first(self, number: int) -> "ImageSource":
        """Return a source of the first `number` images."""
        part = copy.copy(self)
        vars(part).pop("fingerprint", None)
        part.keep_first(number)
        return part

    @abstractmethod
    def keep_first(self, number: int) -> None:
        """Drop all images after the first `number`."""

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
    """The first `number` images of a split, read as in training."""

    def __init__(self, images: ImageDataset, number: int | None = None):
        self.images = images
        self.name = f"{images.split} split of {images.name}"
        self.image_size = (images.image_size, images.image_size)
        self._number = len(images) if number is None else min(number, len(images))

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> Tensor:
        return to_uint8(self.images[index]["images"])

    def batch(self, chunk: range) -> Tensor:
        """Read the images of a range, uint8 (b, C, H, W); several threads may, each with its own part of a shard."""
        return copy.copy(self.images).pixel_batch(list(chunk))["images"]

    def keep_first(self, number: int) -> None:
        """Drop all images after the first `number`."""
        self._number = number

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the data set, with the number of images unless all are used."""
        whole = self.images.fingerprint()
        return whole if len(self) == len(self.images) else f"{whole}[:{len(self)}]"


class ProtocolImages(DataSetImages):
    """The images of a split, converted to bytes as a protocol of reconstructions does."""

    def __init__(self, images: ImageDataset, number: int, protocol: Protocol):
        super().__init__(images, number)
        self.protocol = protocol

    def __getitem__(self, index: int) -> Tensor:
        return self.protocol.to_bytes(self.images[index]["images"][None])[0]

    def batch(self, chunk: range) -> Tensor:
        """Read the images of a range, uint8 (b, C, H, W), or (b, 3, H, W) with JPEG."""
        return self.protocol.to_bytes(as_floats(super().batch(chunk)))

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the split, with the protocol's conversion if it alters the images."""
        split = super().fingerprint
        altered = f" {self.protocol.quantisation}, {self.protocol.storage}"
        return split + altered if self.protocol.alters_images else split


class FolderImages(ImageSource):
    """The images of a folder and its subfolders, sorted by path and read as in training.

    Args:
        folder: with image files, or the output folder of `arcvq sample`.

    Attributes:
        line: a line that describes the images.

    Raises:
        ValueError: the folder has no images, files that are no images, or images of several sizes. Reading a broken
            file raises it too.
    """

    def __init__(self, folder: Path):
        self.name = str(folder)
        folder = _images_of_samples(folder)
        listing = find_files(folder)
        self.files = [Path(image.path) for image in listing.images]
        if not self.files:
            content = str(listing.left_out) or "it is empty"
            raise ValueError(f"folder {self.name!r} has no image files: {content}; save the images as PNG")
        sizes: dict[tuple[int, int], Path] = {}
        grey = True
        for file in self.files:
            check_file(str(file))
            mode, (width, height) = image_header(file, f"image {file}")
            grey = grey and is_grey(mode)
            sizes.setdefault((width, height), file)
        if len(sizes) > 1:
            ((width, height), file), ((other_width, other_height), other) = list(sizes.items())[:2]
            raise ValueError(
                f"folder {self.name!r} holds images of several sizes: {file.name} is {width}x{height}, {other.name} is "
                f"{other_width}x{other_height}; make them one size, or name the folder of those to measure"
            )
        ((width, height),) = sizes
        self._channels, self.image_size = (1 if grey else 3), (height, width)
        lossy = sum(file.suffix.lower() in _LOSSY for file in self.files)
        self.line = f"images: {len(self.files)} in {folder}, {self._channels} x {height} x {width}"
        self.line += f"; left out: {listing.left_out}" if str(listing.left_out) else ""
        self.line += f"; {lossy} are JPEG, whose losses are measured with them" if lossy else ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        file = str(self.files[index])
        image = decode_image(read_file(file), f"image {file}")
        if image.size != self.image_size[::-1]:
            raise ValueError(f"image {file} is turned by EXIF data behind its pixels; save it upright")
        pixels = np.asarray(convert(image, self._channels, f"image {file}"))
        return torch.from_numpy(np.array(pixels)).reshape(*self.image_size, self._channels).permute(2, 0, 1)

    def keep_first(self, number: int) -> None:
        """Drop all images after the first `number`."""
        self.files = self.files[:number]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the files' contents in order; the files are not decoded for it."""
        digest = hashlib.sha256(f"{len(self)} ".encode())
        for file in self.files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()


def _images_of_samples(folder: Path) -> Path:
    """Return the folder `images` of `arcvq sample`'s output; return any other folder unchanged.

    Raises:
        ValueError: the samples are no PNG files.
    """
    if not (folder / SAMPLES).is_file():
        return folder
    for other, remedy in (("samples.npz", "name that file"), ("shards", "sample with --format png or npz")):
        if not (folder / "images").is_dir() and (folder / other).exists():
            raise ValueError(f"folder {str(folder)!r} holds its samples as {other}; {remedy}")
    return folder / "images" if (folder / "images").is_dir() else folder


class NpzImages(ImageSource):
    """The images `arr_0` of an npz, uint8 (N, H, W, C) with C 1 or 3, and their labels `arr_1`, int64 (N,), if any.

    An uncompressed array is mapped into memory; a compressed one is read.

    Raises:
        ValueError: the npz has no such array, or one of another kind.
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
        """Drop all images after the first `number`."""
        self.images, self.labels = self.images[:number], None if self.labels is None else self.labels[:number]


def open_image_source(folder: str) -> ImageSource | None:
    """Open an npz or a folder of images; return None for a folder that holds a model or a run.

    Raises:
        ValueError: see `FolderImages` and `NpzImages`.
    """
    path = Path(folder)
    if path.is_file() and path.suffix == ".npz":
        return NpzImages(path)
    indices = ("config.json", "model_index.json", "config.yaml", *ARTEFACTS, "vqvae")
    if not path.is_dir() or any((path / index).exists() for index in indices):
        return None
    images = FolderImages(path)
    announce(images.line)
    return images
