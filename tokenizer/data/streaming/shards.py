"""A folder or an address of shards -> its shards by split; what a shard is. Two files know the two kinds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from tokenizer.data.decoding import DataError, reason_of
from tokenizer.data.folders.files import is_hidden, walk_files
from tokenizer.data.folders.overlap import refuse_shared_files
from tokenizer.data.left_out import LeftOut, listed
from tokenizer.data.split_names import shards_by_split


@dataclass(frozen=True)
class ShardFile:
    """A file of images.

    Args:
        url: where `fsspec` finds it.
        path: its place below the data set's folder.
        size: in bytes.
        version: what else tells it from another file at the same place: a time, a hash.
    """

    url: str
    path: str
    size: int
    version: str

    def open(self) -> Any:
        """The file, to be read; opened anew in each process, as remote file systems do not outlive a fork."""
        return fsspec.open(self.url, "rb").open()

    def span(self, first: int, last: int) -> bytes:
        """Its bytes first..last-1."""
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return filesystem.cat_file(path, start=first, end=last)

    def broken(self, error: Exception | str) -> DataError:
        """The error that says that the file cannot be used."""
        reason = error if isinstance(error, str) else reason_of(error)
        return DataError(f"shard {self.name} cannot be read: {reason}; replace it")

    @property
    def name(self) -> str:
        """What an error calls it."""
        return self.url.removeprefix("file://")


@dataclass(eq=False)
class Block:
    """Samples that are read together: their encoded images, and their labels, int64 (n,)."""

    images: Sequence[Any]  # of buffers; None where there is none
    labels: np.ndarray


@dataclass(eq=False)
class Shard(ABC):
    """A shard whose metadata have been read.

    Args:
        file: where it lies.
        counts: samples in each of its blocks, int64 (blocks,).
        label_range: its smallest and largest label; None without labels.
        class_names: those that are stored in it.
    """

    file: ShardFile
    counts: np.ndarray
    label_range: tuple[int, int] | None
    class_names: list[str] | None

    @abstractmethod
    def read(self, block: int) -> Block:
        """A block. Raises DataError, which names the file, where it cannot be read."""

    @abstractmethod
    def read_labels(self) -> np.ndarray:
        """All labels in order, int64 (n,); zeros without labels."""

    @abstractmethod
    def image_layout(self) -> tuple[bytes, tuple[int, int]]:
        """What the index says of the stored images, their lengths above all; first and last byte + 1 of one or some.

        Neither follows from where the file lies or when it was written.
        """


def _found(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, dict[str, Any]]:
    """What is known of each file below a folder, by its place; of a folder here links are followed."""
    if not isinstance(filesystem, LocalFileSystem) or not Path(root).is_dir():
        return filesystem.find(root, detail=True)
    return {path: filesystem.info(path) for path, *_ in walk_files(root, (), (), LeftOut())}


def find_shards(
    name: str, suffixes: Sequence[str], test_split: str | None = None
) -> tuple[dict[str, list[ShardFile]], LeftOut]:
    """Find the shards below a folder or at an address, sorted by path, under their splits; and what else lies there.

    Args:
        name: the folder or address.
        suffixes: the endings of shards.
        test_split: another name that the user calls the held-out split by.

    Raises:
        DataError: nothing of the kind is there, or `shards_by_split` cannot tell the splits.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(str(name))
        found = _found(filesystem, root)
    except DataError:
        raise
    except Exception as error:  # each file system raises errors of its own
        raise DataError(f"shards of {name!r} cannot be listed: {reason_of(error)}; correct data.name") from error
    files: dict[str, ShardFile] = {}
    left_out = LeftOut()
    for place, info in sorted(found.items()):
        path = place.removeprefix(root).lstrip("/")
        if any(map(is_hidden, path.split("/"))):
            left_out.hidden += 1
        elif place.lower().endswith(tuple(suffixes)):
            version = " ".join(str(info[key]) for key in ("mtime", "blob_id", "ETag", "LastModified") if key in info)
            files[path] = ShardFile(filesystem.unstrip_protocol(place), path, info["size"], version)
        else:
            left_out.endings[PurePosixPath(path).suffix.lower() or "no ending"] += 1
    if not files:
        kinds = " or ".join(suffixes)
        there = f", only {listed(sorted(left_out.endings))}" if left_out.endings else ""
        raise DataError(
            f"{name!r} holds no {kinds} files{there}; data.streaming needs a folder or an address of such shards"
        )
    by_split = shards_by_split(list(files), repr(name), test_split)
    if isinstance(filesystem, LocalFileSystem):
        refuse_shared_files(
            {split: [f"{root}/{path}" for path in paths] for split, paths in by_split.items()}, repr(name)
        )
    return {split: [files[path] for path in paths] for split, paths in by_split.items()}, left_out


def checked(read: Callable[[], Any], file: ShardFile) -> Any:
    """What `read` returns; what it raises as an error that names the shard."""
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # what a broken file or a file system raises is open-ended
        raise file.broken(error) from error
