"""Refuse a data set in which one file, by links, is both a training image and a held-out one."""

from collections.abc import Collection, Mapping
from pathlib import Path

from tokenizer.data.decoding import DataError
from tokenizer.data.folders.files import FoundImage, file_identity


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
            if (identity := file_identity(path)) is not None:
                other = seen.setdefault(identity, (split, path))
                if other[0] != split:
                    _refuse_if_same(other[1], path, owner)


def _refuse_if_same(one: str, other: str, owner: str) -> None:
    """Ask again: some file systems give all files in a listing one number."""
    if Path(one).samefile(other):
        raise DataError(
            f"{one} and {other} are one file, which would be trained on and held out; remove one of them from {owner}"
        )
