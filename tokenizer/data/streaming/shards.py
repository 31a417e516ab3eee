"""Find the shards of a folder or address, sorted by split; the interface of a shard (parquet.py, webdataset.py)."""

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
        url: address for `fsspec`.
        path: path below the data set's folder.
        size: size in bytes.
        version: distinguishes versions of the file at one address: a time, a hash.
    """

    url: str
    path: str
    size: int
    version: str

    def open(self) -> Any:
        """Open the file for reading; call it in each process, as remote file systems do not survive a fork."""
        return fsspec.open(self.url, "rb").open()

    def span(self, first: int, last: int) -> bytes:
        """Read bytes first..last-1."""
        filesystem, path = fsspec.core.url_to_fs(self.url)
        return filesystem.cat_file(path, start=first, end=last)

    def broken(self, error: Exception | str) -> DataError:
        """Build the error that says that the file cannot be used."""
        reason = error if isinstance(error, str) else reason_of(error)
        return DataError(f"shard {self.name} cannot be read: {reason}; replace it")

    @property
    def name(self) -> str:
        """Name of the file in errors."""
        return self.url.removeprefix("file://")


@dataclass(eq=False)
class Block:
    """Samples that are read together: encoded images, and labels, int64 (n,)."""

    images: Sequence[Any]  # buffers; None for a missing image
    labels: np.ndarray


@dataclass(eq=False)
class Shard(ABC):
    """A shard whose metadata have been read.

    Args:
        file: its file.
        counts: samples in each of its blocks, int64 (blocks,).
        label_range: smallest and largest label; None without labels.
        class_names: class names stored in the shard.
    """

    file: ShardFile
    counts: np.ndarray
    label_range: tuple[int, int] | None
    class_names: list[str] | None

    @abstractmethod
    def read(self, block: int) -> Block:
        """Read a block; raise DataError, which names the file, if that fails."""

    @abstractmethod
    def read_labels(self) -> np.ndarray:
        """Read all labels in order, int64 (n,); zeros without labels."""

    @abstractmethod
    def image_layout(self) -> tuple[bytes, tuple[int, int]]:
        """Return the index's entries of the stored images, and the byte range of one or some images.

        The entries include the images' lengths. Both are independent of the file's location and time.
        """


def _list_files(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, dict[str, Any]]:
    """List the files below a folder with their details, by path; local links are followed."""
    if not isinstance(filesystem, LocalFileSystem) or not Path(root).is_dir():
        return filesystem.find(root, detail=True)
    return {path: filesystem.info(path) for path, *_ in walk_files(root, (), (), LeftOut())}


def find_shards(
    name: str, suffixes: Sequence[str], test_split: str | None = None
) -> tuple[dict[str, list[ShardFile]], LeftOut]:
    """Find the shards below a folder or at an address, sorted by path and grouped by split; also count other files.

    Args:
        name: the folder or address.
        suffixes: endings of shards.
        test_split: a further name of the held-out split.

    Raises:
        DataError: no shards exist there, or `shards_by_split` cannot tell the splits.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(str(name))
        files_found = _list_files(filesystem, root)
    except DataError:
        raise
    except Exception as error:  # each file system raises its own errors
        raise DataError(f"shards of {name!r} cannot be listed: {reason_of(error)}; correct data.name") from error
    files: dict[str, ShardFile] = {}
    left_out = LeftOut()
    for location, info in sorted(files_found.items()):
        path = location.removeprefix(root).lstrip("/")
        if any(map(is_hidden, path.split("/"))):
            left_out.hidden += 1
        elif location.lower().endswith(tuple(suffixes)):
            version = " ".join(str(info[key]) for key in ("mtime", "blob_id", "ETag", "LastModified") if key in info)
            files[path] = ShardFile(filesystem.unstrip_protocol(location), path, info["size"], version)
        else:
            left_out.endings[PurePosixPath(path).suffix.lower() or "no ending"] += 1
    if not files:
        kinds = " or ".join(suffixes)
        others = f", only {listed(sorted(left_out.endings))}" if left_out.endings else ""
        raise DataError(
            f"{name!r} holds no {kinds} files{others}; data.streaming needs a folder or an address of such shards"
        )
    by_split = shards_by_split(list(files), repr(name), test_split)
    if isinstance(filesystem, LocalFileSystem):
        refuse_shared_files(
            {split: [f"{root}/{path}" for path in paths] for split, paths in by_split.items()}, repr(name)
        )
    return {split: [files[path] for path in paths] for split, paths in by_split.items()}, left_out


def checked(read: Callable[[], Any], file: ShardFile) -> Any:
    """Call `read`; turn its errors into a DataError that names the shard."""
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # broken files and file systems raise errors of any class
        raise file.broken(error) from error
