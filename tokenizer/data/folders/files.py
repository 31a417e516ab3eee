"""Find the images, parquet and metadata files in a folder, and count everything else."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tokenizer.data.decoding import DataError, image_suffixes
from tokenizer.data.left_out import LeftOut

# Folders that operating systems and tools create next to the user's own.
_HIDDEN_FOLDERS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Metadata files of the images in their folder, named as in `datasets`.
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


class FoundImage(NamedTuple):
    """An image file.

    Attributes:
        path: path of the file, beginning with the searched folder.
        folders: folders between the searched folder and the file.
        identity: device and inode, equal for two paths to one file; None if the file does not exist.
    """

    path: str
    folders: tuple[str, ...]
    identity: tuple[int, int] | None


@dataclass
class FoundFiles:
    """The files of a folder, sorted by path.

    Attributes:
        images: files with an image's ending.
        parquet: paths of parquet files relative to the folder, without metadata.parquet.
        metadata: paths of `METADATA_FILES`.
        left_out: counts of everything else.
    """

    images: list[FoundImage] = field(default_factory=list)
    parquet: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of this name belongs to the system, not to the user."""
    return name.startswith(".") or name in _HIDDEN_FOLDERS


def find_files(folder: Path) -> FoundFiles:
    """Search a folder and all folders in it, following links to folders.

    Raises:
        DataError: a folder cannot be read.
    """
    files, suffixes = FoundFiles(), image_suffixes()
    for path, name, folders, identity in walk_files(str(folder), (), (), files.left_out):
        if is_hidden(name) or any(map(is_hidden, folders)):
            files.left_out.hidden += 1
            continue
        if name.lower() in METADATA_FILES:
            files.metadata.append(path)
        elif (ending := os.path.splitext(name)[1].lower()) in suffixes:  # noqa: PTH122 (a million times)
            _check_name(path)
            files.images.append(FoundImage(path, folders, identity))
        elif ending == ".parquet":
            files.parquet.append("/".join((*folders, name)))
        else:
            files.left_out.endings[ending.encode("utf-8", "replace").decode() or "no ending"] += 1
    files.images.sort(key=lambda image: image.path)
    files.parquet.sort()
    return files


def _check_name(path: str) -> None:
    """Raise DataError if a path is no UTF-8 text, which no table can hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise DataError(f"the name of image {shown} is not UTF-8; rename the file or its folder") from error


def walk_files(
    folder: str, folders: tuple[str, ...], above: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, str, tuple[str, ...], tuple[int, int] | None]]:
    """Yield every file below a folder: path, name, folders on the way to it, identity.

    Args:
        folder: folder to search.
        folders: names of the folders on the way to it, none at first.
        above: identities of these folders, none at first.
        left_out: counts circular links and unreadable hidden folders.

    Raises:
        DataError: a folder cannot be read.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 (Path itself raises other errors for some names)
        entries = list(os.scandir(folder))
    except OSError as error:
        if any(map(is_hidden, folders)):  # such as lost+found, which only the system reads
            left_out.hidden += 1
            return
        raise DataError(f"folder {folder} cannot be read: {error.strerror}; make it readable, or move it") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        left_out.others["link to a folder that it lies in"] += 1
        return
    for entry in entries:
        if _is_folder(entry):
            yield from walk_files(entry.path, (*folders, entry.name), (*above, identity), left_out)
        elif entry.is_symlink():
            yield entry.path, entry.name, folders, file_identity(entry.path)
        else:
            yield entry.path, entry.name, folders, (status.st_dev, entry.inode())


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link: reading it as an image will fail
        return False


def file_identity(path: str) -> tuple[int, int] | None:
    """Return the device and inode of a file, equal for all links to it; None if the file does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:  # a dangling link: reading the image will fail
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None
