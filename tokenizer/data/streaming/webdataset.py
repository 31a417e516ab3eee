"""Tar shards in WebDataset's format: the members of a sample follow each other and share a key.

A tar has no table of contents, so its headers are read once and the resulting index is cached on disk.
"""

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tokenizer.data.decoding import DataError, check_length
from tokenizer.data.streaming.shards import Block, Shard, ShardFile, checked

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

# Samples of a block: some 7 MB of photographs.
BLOCK_SAMPLES = 64

# Most bytes of a `.cls`, which holds one integer.
LABEL_BYTES = 64

# Version of the cached index; increase it when its content changes.
_FORMAT = 1
_NO_LABEL = np.iinfo(np.int64).min


@dataclass(eq=False)
class TarShard(Shard):
    """A tar file with an image and a `.cls` (the text of an integer label) for each key.

    `samples` holds each image's first byte, its length, and the label, int64 (n, 3).
    """

    samples: np.ndarray

    def read(self, block: int) -> Block:
        """Read at most BLOCK_SAMPLES consecutive samples."""
        samples = self.samples[block * BLOCK_SAMPLES : (block + 1) * BLOCK_SAMPLES]
        first, last = int(samples[0, 0]), int(samples[-1, :2].sum())
        content = memoryview(checked(lambda: self.file.span(first, last), self.file))
        if len(content) < last - first:
            raise self.file.broken("it is shorter than it was")
        images = [content[start - first : start - first + length] for start, length in samples[:, :2].tolist()]
        return Block(images, self.read_labels()[block * BLOCK_SAMPLES : (block + 1) * BLOCK_SAMPLES])

    def read_labels(self) -> np.ndarray:
        """Return all labels."""
        return self.samples[:, 2] if self.label_range is not None else np.zeros(len(self.samples), np.int64)

    def image_layout(self) -> tuple[bytes, tuple[int, int]]:
        """Return the byte range of every image, and that of the middle one."""
        first, length = self.samples[len(self.samples) // 2, :2].tolist()
        return self.samples[:, :2].astype("<i8").tobytes(), (first, first + length)


def index_tar(file: ShardFile) -> TarShard:
    """Build the shard from its headers, which are read once and cached in the cache folder of `datasets`.

    Raises:
        DataError: the file is cut off, or a sample has no image, several images, or no label while others have one.
    """
    key = hashlib.sha256(f"{_FORMAT} {file.url} {file.size} {file.version}".encode()).hexdigest()
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "tar-shards" / f"{key[:32]}.safetensors"
    try:
        samples = load_file(cached)["samples"].numpy()
    except (FileNotFoundError, SafetensorError):
        samples = checked(lambda: _scan(file), file)
        cached.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(f".{os.getpid()}.tmp")  # processes may index the same shard at once
        save_file({"samples": torch.from_numpy(samples)}, unfinished)
        unfinished.replace(cached)
    labels = samples[:, 2]
    unlabelled = labels == _NO_LABEL
    if unlabelled.any() and not unlabelled.all():
        raise DataError(f"shard {file.name} has no .cls for sample {np.argmax(unlabelled)}; add or remove it")
    label_range = None if unlabelled.all() else (int(labels.min()), int(labels.max()))
    starts = np.arange(0, len(samples), BLOCK_SAMPLES)
    counts = np.minimum(len(samples) - starts, BLOCK_SAMPLES)
    return TarShard(file, counts, label_range, class_names=None, samples=samples)


def _scan(file: ShardFile) -> np.ndarray:
    """Read TarShard.samples from the headers; the label of a sample without one is _NO_LABEL."""
    samples: list[list[int]] = []
    key = None
    with file.open() as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
        for member, member_key, extension in _files(archive):
            if member_key != key:
                _refuse_without_image(samples, key, file)
                key = member_key
                samples.append([-1, 0, _NO_LABEL])
            if extension in IMAGE_EXTENSIONS:
                if samples[-1][0] >= 0:
                    raise DataError(f"shard {file.name} has several images for {key!r}; keep one of them")
                check_length(member.size, f"image {len(samples) - 1} of shard {file.name}")
                if member.issparse():  # its bytes are not contiguous in the tar
                    raise file.broken(f"the image of {key!r} is stored with holes")
                samples[-1][:2] = member.offset_data, member.size
            elif extension == "cls":
                if member.size > LABEL_BYTES:
                    raise DataError(
                        f"shard {file.name} has a .cls of {member.size:,} bytes for {key!r}, not an integer"
                    )
                samples[-1][2] = _label(archive.extractfile(member).read(), key, file)
        opened.seek(archive.offset)
        if opened.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # a complete archive ends with zeros
            raise file.broken("it is cut off, or its next header is broken")
        _refuse_without_image(samples, key, file)
    return np.array(samples, np.int64).reshape(-1, 3)


def _files(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str, str]]:
    """Yield the members with their keys and extensions, without files that tools add."""
    while (member := archive.next()) is not None:
        if archive.offset <= member.offset:  # a negative size: the same header would be read forever
            raise tarfile.ReadError(f"the size of {member.name!r} is broken")
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        if member.isfile() and not name.startswith((".", "__")):
            yield member, f"{folder}/{stem}", extension.lower()
        archive.members.clear()  # otherwise tarfile keeps every header in memory


def _refuse_without_image(samples: list[list[int]], key: str | None, file: ShardFile) -> None:
    if samples and samples[-1][0] < 0:
        raise DataError(f"shard {file.name} {_why_without_image(key, file)}")


def _why_without_image(key: str, file: ShardFile) -> str:
    """Say which members a key, or the whole tar, has instead of an image that was not found."""
    of_key, of_all, places, before = Counter(), Counter(), 0, None
    with file.open() as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
        for _, member_key, extension in _files(archive):
            of_all[extension] += 1
            if member_key == key:
                of_key[extension] += 1
                places += before != key
            before = member_key
    if places > 1:
        return f"has the members of {key!r} ({_listed(of_key)}) apart from each other; write it with: tar --sort=name"
    lacks = f"has no image ({_listed(IMAGE_EXTENSIONS)}) for {key!r}"
    if any(extension.rpartition(".")[2] in IMAGE_EXTENSIONS for extension in of_key if "." in extension):
        lacks += ", as an ending begins at a name's first dot"
    if of_all.keys() & set(IMAGE_EXTENSIONS):
        return f"{lacks}, only {_listed(of_key)}; add it or remove the sample"
    return f"{lacks}, nor for any other, only {_listed(of_all)}; save the images as one of these"


def _listed(extensions: Iterable[str]) -> str:
    """List up to five file endings."""
    named = [f".{extension}"[:40] if extension else "no ending" for extension in extensions]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} others" if len(named) > 5 else "")


def _label(text: bytes, key: str, file: ShardFile) -> int:
    try:
        label = int(text)
        if not abs(label) <= np.iinfo(np.int64).max:
            raise ValueError
        return label
    except ValueError:
        raise DataError(
            f"shard {file.name} has the label {text[:20]!r} for {key!r}, not an integer of 64 bits"
        ) from None
