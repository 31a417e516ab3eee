"""A folder => the images, parquet and metadata files that lie in it, and a count of everything else."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tokenizer.data.decoding import DataError, image_suffixes
from tokenizer.data.left_out import LeftOut

# Folders that operating systems and tools put beside a user's own.
_HIDDEN_FOLDERS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Files that say something of the images beside them, as `datasets` calls them.
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class FoundImage(NamedTuple):
    """An image file.

    Attributes:
        path: where it is, with the folder that was looked through before it.
        folders: those on the way to it from that folder.
        identity: device and inode: the same of two paths to one file; None where the file is not there.
    """

    path: str
    folders: tuple[str, ...]
    identity: tuple[int, int] | None


@dataclass
class FoundFiles:
    """Hold what lies in a folder, sorted by path.

    Attributes:
        images: files whose name ends as an image's.
        parquet: paths of parquet files below the folder, without metadata.parquet.
        metadata: paths of `METADATA_FILES`.
        left_out: everything else.
    """

    images: list[FoundImage] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def is_hidden(name: str) -> bool:
    """Say whether a file or folder of this name is none of the user's."""
    return name.startswith(".") or name in _HIDDEN_FOLDERS


def find_files(folder: Path) -> FoundFiles:
    """Look through a folder and all folders in it, links to folders included.

    Raises:
        DataError: a folder cannot be read.
    """
    found, suffixes = FoundFiles(), image_suffixes()
    for path, name, folders, identity in walk_files(str(folder), (), (), found.left_out):
        if is_hidden(name) or any(map(is_hidden, folders)):
            found.left_out.hidden += 1
            continue
        if name.lower() in METADATA_FILES:
            found.metadata.append(path)
        elif (ending := os.path.splitext(name)[1].lower()) in suffixes:  # noqa: PTH122 (a million times)
            _check_name(path)
            found.images.append(FoundImage(path, folders, identity))
        elif ending == ".parquet":
            found.parquet.append("/".join((*folders, name)))
        else:
            found.left_out.endings[ending.encode("utf-8", "replace").decode() or "no ending"] += 1
    found.images.sort(key=lambda image: image.path)
    found.parquet.sort()
    return found


def _check_name(path: str) -> None:
    """Raise DataError where a path is no text, which no table can hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise DataError(f"the name of image {shown} is not UTF-8; rename the file or its folder") from error


def walk_files(
    folder: str, folders: tuple[str, ...], above: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, str, tuple[str, ...], tuple[int, int] | None]]:
    """Go through every file below a folder: path, name, the folders on the way to it, identity.

    Args:
        folder: to begin with.
        folders: their names on the way to it, none at first.
        above: their identities, none at first.
        left_out: where links in a circle and hidden folders that cannot be read are counted.

    Raises:
        DataError: a folder cannot be read.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 (a name may hold what a Path takes for an error of its own)
        entries = list(os.scandir(folder))
    except OSError as error:
        if any(map(is_hidden, folders)):  # such as lost+found, which only the system reads
            left_out.hidden += 1
            return
        raise DataError(f"folder {folder} cannot be read: {error.strerror}; make it readable, or move it") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        left_out.others["link to a folder that it lies in"] += 1
        return
    for entry in entries:
        if _is_folder(entry):
            yield from walk_files(entry.path, (*folders, entry.name), (*above, here), left_out)
        elif entry.is_symlink():
            yield entry.path, entry.name, folders, file_identity(entry.path)
        else:
            yield entry.path, entry.name, folders, (status.st_dev, entry.inode())


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: reading it as an image will say so
        return False


def file_identity(path: str) -> tuple[int, int] | None:
    """Give the device and inode of a file, the same of all links to it; None where there is no file."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # the link leads nowhere: reading the image will say so
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
