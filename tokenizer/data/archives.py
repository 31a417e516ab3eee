"""Data sets by name that lie in an archive of image folders at a fixed address, downloaded once by `datasets`."""

import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import DownloadConfig, DownloadManager

from tokenizer.data.decoding import DataError, reason_of
from tokenizer.data.folders.files import FoundFiles, FoundImage, find_files
from tokenizer.data.folders.splits import FolderSplit, folder_splits


@dataclass(frozen=True)
class Archive:
    """A public repository whose folders train, validation and test hold images in class folders.

    Attributes:
        repository: address of the repository.
        commit: full hash of the commit that is read.
        images: number of images in all three.
    """

    repository: str
    commit: str
    images: int

    @property
    def address(self) -> str:
        """Address of the commit as a zip file with one folder at its top."""
        return f"{self.repository}/archive/{self.commit}.zip"

    @property
    def by_hand(self) -> str:
        """The commands that fetch the files by hand, as a folder with the same two splits."""
        folder = self.repository.rpartition("/")[2]
        return (
            f"git clone {self.repository} && cd {folder} && git checkout {self.commit[:7]} && "
            "cp -r validation/. train && rm -r validation"
        )


ARCHIVES = {
    "clothing": Archive(
        "https://github.com/alexeygrigorev/clothing-dataset-small", "11961516512414bf9f6c150a832cfd21b54a6b54", 3_781
    )
}


def archive_splits(name: str) -> tuple[FoundFiles, dict[str, FolderSplit]]:
    """Download and unpack the archive of a data set, or find it in the cache of `datasets`.

    Args:
        name: a key of `ARCHIVES`.

    Returns:
        The files, and the splits `train`, which has the images of validation as well, and `test`. Images are in the
        order that they have in the folder of `Archive.by_hand`.

    Raises:
        DataError: the archive cannot be downloaded or unpacked, or files of it are missing in the cache.
    """
    archive = ARCHIVES[name]
    try:
        # Without ETag: the files of a commit do not change, and what is in the cache needs no network.
        downloads = DownloadManager(download_config=DownloadConfig(use_etag=False))
        folder = _unpacked(Path(downloads.download(archive.address)))
    except Exception as error:  # clients, archives and disks raise errors of many unrelated classes
        raise DataError(
            f"data set {name!r} could not be loaded from {archive.address}: {reason_of(error)}; fetch it by hand with "
            f"{archive.by_hand}, and set data.name to that folder"
        ) from error
    top = next((part for part in sorted(folder.iterdir()) if part.is_dir()), folder)
    listing = find_files(top)
    if len(listing.images) != archive.images:  # such as where a cleaner of temporary files has been
        raise DataError(
            f"{folder} holds {len(listing.images)} images of data set {name!r}, which has {archive.images}; remove it, "
            "and what lies beside it under the same name, to have it downloaded anew"
        )
    splits = folder_splits(listing, f"data set {name!r}")
    splits["train"] = _joined(splits["train"], splits.pop("validation"))
    return listing, splits


def _unpacked(file: Path) -> Path:
    """Unpack a zip file into a folder beside it, which has its name only when it is whole; once for all processes."""
    folder = file.with_name(f"{file.name}-unpacked")
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=file.parent) as part:
        try:
            with zipfile.ZipFile(file) as archive:
                archive.extractall(Path(part) / "files")
        except Exception as error:  # BadZipFile, zlib.error, NotImplementedError and others, by what is damaged
            if not isinstance(error, OSError):  # which is the disk's, and the archive good
                file.unlink()  # such as the page of a proxy, which the next start would find again
            raise
        try:
            (Path(part) / "files").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first
                raise
    return folder


def _joined(first: FolderSplit, second: FolderSplit) -> FolderSplit:
    """Join two splits with classes, sorted by class and file, whichever of the two an image lay in."""
    pairs = zip(first.images + second.images, (first.classes or []) + (second.classes or []), strict=True)
    images, classes = zip(*sorted(pairs, key=lambda pair: _below_split(pair[0])), strict=True)
    return replace(first, images=list(images), classes=list(classes))


def _below_split(image: FoundImage) -> str:
    return "/".join((*image.folders[1:], Path(image.path).name))
