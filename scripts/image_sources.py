"""Where images that are measured come from: a data set, a folder of PNG files, an npz as ADM's evaluator reads it.

Each is a sequence of uint8 (C, H, W) tensors of one size, read when asked for, with a fingerprint of its contents.
"""

import copy
import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.lib import format as npy
from torch import Tensor

from pipelines.metrics import to_uint8
from pipelines.protocols import Protocol
from tokenizer.data import ImageDataset
from tokenizer.image_files import convert


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
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"image {file} is broken: {error}; remove it or save it again") from error
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
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                if "arr_0.npy" not in names:
                    raise ValueError(
                        f"{file} has no array arr_0, only {', '.join(names)}; save images with numpy.savez"
                    )
                self.images = _mapped(file, archive.getinfo("arr_0.npy"))
            with np.load(file, allow_pickle=False) as arrays:
                self.images = arrays["arr_0"] if self.images is None else self.images
                self.labels = torch.from_numpy(arrays["arr_1"].astype(np.int64)) if "arr_1.npy" in names else None
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{file} cannot be read as an npz: {error}; save images with numpy.savez") from error
        shape, dtype = self.images.shape, self.images.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or len(self.images) == 0:
            raise ValueError(f"arr_0 of {file} is {dtype} {shape}, not uint8 (N, H, W, 3 or 1)")
        if self.labels is not None and self.labels.shape != (len(self.images),):
            raise ValueError(f"arr_1 of {file} has shape {tuple(self.labels.shape)}, not one label per image")
        self.image_size = (shape[1], shape[2])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)

    def keep_first(self, number: int) -> None:
        """Forgets all images but the first `number`."""
        self.images, self.labels = self.images[:number], None if self.labels is None else self.labels[:number]


def _mapped(file: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """An array stored in a zip without compression, mapped into memory; None where it is compressed."""
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with file.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # of a local header: lengths of the name and of the extra field
        lengths = np.frombuffer(raw.read(4), "<u2")
        raw.seek(member.header_offset + 30 + int(lengths.sum()))
        version = npy.read_magic(raw)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(raw)
        if dtype.hasobject or fortran_order:
            raise ValueError(f"arr_0 of {file} is {dtype}{' in Fortran order' * fortran_order}, not uint8 (N, H, W, C)")
        return np.memmap(file, dtype=dtype, mode="r", offset=raw.tell(), shape=shape)


def _opened(file: Path) -> PIL.Image.Image:
    """The image, its pixels not yet read."""
    try:
        return PIL.Image.open(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"image {file} is broken: {error}; remove it or save it again") from error
