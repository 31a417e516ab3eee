"""Sort the images of a folder into splits and classes, by the names of folders alone.

A split is a top-level folder whose name is in `split_names.SPLITS`; without any, all images are one split. A class is
the first folder below the split, and includes deeper folders; images without such a folder have no classes. Every image
must fit, or the folder is refused.
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
        images: images of the split.
        classes: class folder of each image; None without classes.
        depth: number of folders between the searched folder and the class folders.
    """

    images: list[FoundImage]
    classes: list[str] | None
    depth: int = 0

    def notes(self) -> list[str]:
        """Point out folders that may be the intended classes if all images are of one class."""
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
        """List the names of the folders at a depth on the way to the images."""
        return sorted({image.folders[depth] for image in self.images if len(image.folders) > depth})


def folder_splits(files: FoundFiles, owner: str, test_split: str | None = None) -> dict[str, FolderSplit]:
    """Sort the images of a folder into splits and classes.

    Args:
        files: result of `find_files`.
        owner: name of the folder in errors.
        test_split: a further name of the held-out split.

    Returns:
        The splits by canonical name; `train` alone if no folder is a split.

    Raises:
        DataError: an image belongs to no split or class, two folders are one split, or splits lie below the top.
    """
    by_split: dict[str, list[FoundImage]] = defaultdict(list)
    folders: dict[str, set[str]] = defaultdict(set)
    outside: list[FoundImage] = []
    for image in files.images:
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
        outside_in = listed([f"{name} ({number})" for name, number in sorted(top.items())])
        splits = listed(sorted(name for names in folders.values() for name in names))
        raise DataError(
            f"{owner} has {len(outside)} images beside its splits {splits}: in {outside_in}; move them into a split "
            f"or out of the folder, or, where {splits} are classes, move all classes into a folder called train"
        )
    return {
        split: _in_classes(images, 1, f"folder {min(folders[split])} of {owner}") for split, images in by_split.items()
    }


def _in_classes(images: list[FoundImage], depth: int, owner: str) -> FolderSplit:
    """Build the split of images whose class is the folder at `depth` on the way to them."""
    loose = [image for image in images if len(image.folders) == depth]
    if len(loose) == len(images):
        return FolderSplit(images, None)
    if loose:
        named = listed(sorted({image.folders[depth] for image in images if len(image.folders) > depth}))
        raise DataError(
            f"{owner} has {len(loose)} images beside its class folders {named}, such as "
            f"{os.path.basename(loose[0].path)}; move them into a class folder, or out of it"  # noqa: PTH119
        )
    # Unicode has two encodings of accented letters; NFC makes them one name.
    return FolderSplit(images, [unicodedata.normalize("NFC", image.folders[depth]) for image in images], depth)


def _refuse_splits_below(images: list[FoundImage], owner: str) -> None:
    """Raise DataError if a folder below the top holds both a train and a held-out split."""
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for image in images:
        for depth, name in enumerate(image.folders[1:], start=1):
            if name.casefold() in SPLITS:
                below[image.folders[:depth]].add(SPLITS[name.casefold()])
    parents = [parent for parent, splits in sorted(below.items()) if "train" in splits and len(splits) > 1]
    if parents:
        splits = ", ".join(sorted(below[parents[0]]))
        within = listed(["/".join(parent) for parent in parents], 3)
        alone = all(image.folders[: len(parents[0])] == parents[0] for image in images)
        remedy = "set data.name to that folder, or move them up" if alone else "move them up"
        raise DataError(
            f"the splits {splits} of {owner} lie in {within}, not at its top; {remedy}: <split>/<class>/<image>"
        )
