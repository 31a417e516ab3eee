"""A folder of image files -> the images of each split, and their classes, by the names of folders alone.

The rule, whole: a split is a top-level folder called as `split_names.SPLITS` says; without one all images are one
split. A class is the first folder below the split, and deeper folders belong to it; images without such a folder have
no classes. Every image is used, or the folder is refused; hidden files and other kinds of files are counted.
"""

import os
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tokenizer.image_files import DataError, image_suffixes
from tokenizer.left_out import LeftOut, listed
from tokenizer.split_names import SPLITS, split_of_folder, splits_by_another_name

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
    """What lies in a folder, sorted by path.

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
            yield entry.path, entry.name, folders, _identity(entry.path)
        else:
            yield entry.path, entry.name, folders, (status.st_dev, entry.inode())


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: reading it as an image will say so
        return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:  # the link leads nowhere: reading the image will say so
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


@dataclass(frozen=True)
class FolderSplit:
    """The images of one split, sorted by path.

    Attributes:
        images: of the split.
        classes: the class folder of each; None without classes.
        depth: how many folders lie between the top and the class folders.
    """

    images: list[FoundImage]
    classes: list[str] | None
    depth: int = 0

    def notes(self) -> list[str]:
        """Say so where all images are of one class, and the folders in that may be the classes that were meant."""
        if self.classes is None or len(set(self.classes)) > 1:
            return []
        depth, deeper = self.depth, self._folders(self.depth + 1)
        while len(deeper) == 1:
            depth, deeper = depth + 1, self._folders(depth + 2)
        if not deeper:
            return []
        inner = "/".join(self.images[0].folders[: depth + 1])
        return [f"one class, whose folder {inner} holds the folders {listed(deeper, 3)}: are those the classes?"]

    def _folders(self, depth: int) -> list[str]:
        """The names of the folders at a depth on the way to the images."""
        return sorted({image.folders[depth] for image in self.images if len(image.folders) > depth})


def folder_splits(found: FoundFiles, owner: str, test_split: str | None = None) -> dict[str, FolderSplit]:
    """Sort the images of a folder into splits and classes.

    Args:
        found: of `find_files`.
        owner: the words that name the folder.
        test_split: another name that the user calls the held-out split by.

    Returns:
        The splits by their one name; `train` alone where no folder is a split.

    Raises:
        DataError: an image is of no split or of no class, two folders stand for one split, or splits lie below the
            top.
    """
    by_split: dict[str, list[FoundImage]] = defaultdict(list)
    folders: dict[str, set[str]] = defaultdict(set)
    outside: list[FoundImage] = []
    for image in found.images:
        split = split_of_folder(image.folders[0], test_split) if image.folders else None
        if split is None:
            outside.append(image)
        else:
            by_split[split].append(image)
            folders[split].add(image.folders[0])
    if not by_split:
        _refuse_splits_below(outside, owner)
        pair = splits_by_another_name({image.folders[0] for image in outside if image.folders})
        if pair is not None:
            raise DataError(
                f"folders {pair[0]} and {pair[1]} of {owner} may be two splits; rename them to train and test, or, "
                "where they are classes, move all classes into a folder called train"
            )
        return {"train": _in_classes(outside, 0, owner)}
    for split, names in folders.items():
        if len(names) > 1:
            raise DataError(
                f"folders {' and '.join(sorted(names))} of {owner} are both the {split} split; "
                "merge them, or rename one"
            )
    if outside:
        top = Counter(image.folders[0] if image.folders else "no folder" for image in outside)
        there = listed([f"{name} ({number})" for name, number in sorted(top.items())])
        splits = listed(sorted(name for names in folders.values() for name in names))
        raise DataError(
            f"{owner} has {len(outside)} images beside its splits {splits}: in {there}; move them into a split or out "
            f"of the folder, or, where {splits} are classes, move all classes into a folder called train"
        )
    return {
        split: _in_classes(images, 1, f"folder {min(folders[split])} of {owner}") for split, images in by_split.items()
    }


def _in_classes(images: list[FoundImage], depth: int, owner: str) -> FolderSplit:
    """The split of images whose class is the folder number `depth` on the way to them."""
    loose = [image for image in images if len(image.folders) == depth]
    if len(loose) == len(images):
        return FolderSplit(images, None)
    if loose:
        named = listed(sorted({image.folders[depth] for image in images if len(image.folders) > depth}))
        raise DataError(
            f"{owner} has {len(loose)} images beside its class folders {named}, such as "
            f"{os.path.basename(loose[0].path)}; move them into a class folder, or out of it"  # noqa: PTH119
        )
    # One name may be written in two ways: as letters with accents, or as letters and accents.
    return FolderSplit(images, [unicodedata.normalize("NFC", image.folders[depth]) for image in images], depth)


def _refuse_splits_below(images: list[FoundImage], owner: str) -> None:
    """Raise DataError where a folder below the top holds both a train split and one that is held out."""
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for image in images:
        for depth, name in enumerate(image.folders[1:], start=1):
            if name.casefold() in SPLITS:
                below[image.folders[:depth]].add(SPLITS[name.casefold()])
    places = [place for place, splits in sorted(below.items()) if "train" in splits and len(splits) > 1]
    if places:
        splits = ", ".join(sorted(below[places[0]]))
        within = listed(["/".join(place) for place in places], 3)
        alone = all(image.folders[: len(places[0])] == places[0] for image in images)
        remedy = "set data.name to that folder, or move them up" if alone else "move them up"
        raise DataError(
            f"the splits {splits} of {owner} lie in {within}, not at its top; {remedy}: <split>/<class>/<image>"
        )


def refuse_overlap(train: list[FoundImage], held_out: list[FoundImage] | None, owner: str) -> None:
    """Raise DataError where one file is a training image and a held-out one, by links.

    `held_out` is None where some of the training images are held out: then no file may come twice.
    """
    seen: dict[tuple[int, int], str] = {}
    for image in train:
        if held_out is None and image.identity in seen:
            _refuse_if_same(seen[image.identity], image.path, owner)
        if image.identity is not None:
            seen[image.identity] = image.path
    for image in held_out or []:
        if image.identity in seen:
            _refuse_if_same(seen[image.identity], image.path, owner)


def refuse_shared_files(splits: Mapping[str, Collection[str]], owner: str) -> None:
    """Raise DataError where files of two splits are one file, by links."""
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for split, paths in splits.items():
        for path in paths:
            if (identity := _identity(path)) is not None:
                other = seen.setdefault(identity, (split, path))
                if other[0] != split:
                    _refuse_if_same(other[1], path, owner)


def _refuse_if_same(one: str, other: str, owner: str) -> None:
    """Ask again: some file systems give all files in a listing one number."""
    if Path(one).samefile(other):
        raise DataError(
            f"{one} and {other} are one file, which would be trained on and held out; remove one of them from {owner}"
        )
