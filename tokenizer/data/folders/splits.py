"""Found images => the images of each split and their classes, by the names of folders alone.

The rule: a split is a top-level folder whose name `split_names.SPLITS` lists; without one all images are one split.
A class is the first folder below the split, and deeper folders belong to it; images without such a folder have no
classes. Every image is used, or the folder is refused.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass

from tokenizer.data.decoding import DataError
from tokenizer.data.folders.files import FoundFiles, FoundImage
from tokenizer.data.left_out import listed
from tokenizer.data.split_names import SPLITS, split_of_folder, splits_by_another_name


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
