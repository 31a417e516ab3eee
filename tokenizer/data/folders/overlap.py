"""Refuse a data set in which links make one file both a training and a held-out image."""

from collections.abc import Collection, Mapping
from pathlib import Path

from tokenizer.data.decoding import DataError
from tokenizer.data.folders.files import FoundImage, file_identity


def refuse_overlap(train: list[FoundImage], held_out: list[FoundImage] | None, owner: str) -> None:
    """Raise DataError if links make one file both a training and a held-out image.

    `held_out` is None if some training images are held out later: then no file may occur twice.
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
    """Raise DataError if links make one file part of two splits."""
    seen: dict[tuple[int, int], tuple[str, str]] = {}
    for split, paths in splits.items():
        for path in paths:
            if (identity := file_identity(path)) is not None:
                other = seen.setdefault(identity, (split, path))
                if other[0] != split:
                    _refuse_if_same(other[1], path, owner)


def _refuse_if_same(path: str, other: str, owner: str) -> None:
    """Raise DataError if both paths are one file; checks again, as some file systems list wrong inodes."""
    if Path(path).samefile(other):
        raise DataError(
            f"{path} and {other} are one file, which would be trained on and held out; remove one of them from {owner}"
        )
