"""Convert label columns to class ids and class names that all splits share."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

from tokenizer.data.decoding import DataError, reason_of
from tokenizer.data.left_out import listed

# Largest number of classes: a label beyond it is a hash, a time, or broken.
MOST_CLASSES = 2**20


@dataclass(frozen=True)
class LabelPart:
    """The labels of a part of a split that numbers its classes itself: a table, or one file of a table.

    Attributes:
        values: integers or texts.
        names: class names of the integers; None if only numbers are known.
        where: name of the part in errors, such as "split 'train'".
    """

    values: pyarrow.ChunkedArray
    names: Sequence[str] | None
    where: str


def label_part(values: pyarrow.ChunkedArray, feature: object, where: str) -> LabelPart:
    """Build a part from a column and its feature in `datasets`."""
    return LabelPart(plain(values), feature.names if isinstance(feature, datasets.ClassLabel) else None, where)


def plain(values: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray:
    """Cast dictionary-encoded and view columns to plain texts and numbers."""
    if pyarrow.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pyarrow.types.is_string_view(values.type) or pyarrow.types.is_large_string(values.type):
        values = values.cast(pyarrow.string())
    return values


def class_ids(
    splits: dict[str, list[LabelPart]], column: str, label_values: str | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Number the classes consistently over all splits.

    Named classes are merged by name, whatever number each part gives them, in the order of the first part. Texts are
    classes in alphabetical order. Plain integers are class ids, see `check_ids`.

    Args:
        splits: the parts of each split.
        column: name of the label column.
        label_values: `data.label_values`.

    Returns:
        Labels int64 (n,) of each split, and the class names.

    Raises:
        DataError: a label is missing or no class, or parts differ in the kind of their labels.
    """
    parts = [part for of_split in splits.values() for part in of_split if len(part.values)]
    for part in parts:
        if len(part.values) == part.values.null_count:
            raise DataError(
                f"{part.where} has no labels in column {column!r}; set data.test_split to a split that has, or "
                "data.label_column to none"
            )
        if part.values.null_count:
            row = pyarrow.compute.index(pyarrow.compute.is_null(part.values), True).as_py()
            raise DataError(f"row {row} of {part.where} has no label in column {column!r}; label or remove the row")
    kinds = {_kind(part, column): part.where for part in parts}
    if len(kinds) > 1:
        (kind, where), (other_kind, other_part) = list(kinds.items())[:2]
        raise DataError(
            f"label column {column!r} holds {kind} in {where} and {other_kind} in {other_part}; write them alike"
        )
    if not parts:
        return {split: np.zeros(0, np.int64) for split in splits}, []
    of_kind = {"class names": _named, "texts": _texts, "integers": _numbers}[next(iter(kinds))]
    if label_values is not None and of_kind is not _numbers:
        raise DataError(
            f"data.label_values is {label_values}, which is for integers without names; label column {column!r} holds "
            f"{next(iter(kinds))}: leave it out"
        )
    ids, class_names = of_kind(parts, column, label_values)
    ids = iter(ids)
    by_split = {split: [next(ids) for part in of_split if len(part.values)] for split, of_split in splits.items()}
    return {split: np.concatenate([np.zeros(0, np.int64), *arrays]) for split, arrays in by_split.items()}, class_names


def _kind(part: LabelPart, column: str) -> str:
    dtype = part.values.type
    if part.names is not None:
        return "class names"
    if pyarrow.types.is_string(dtype) or pyarrow.types.is_large_string(dtype):
        return "texts"
    if not pyarrow.types.is_integer(dtype):
        raise DataError(
            f"label column {column!r} holds {dtype}, not integers or texts; set data.label_column, none for no classes"
        )
    return "integers"


def _named(parts: list[LabelPart], column: str, _: str | None) -> tuple[list[np.ndarray], list[str]]:
    class_names = list(dict.fromkeys(name for part in parts for name in part.names))
    label_of = {name: label for label, name in enumerate(class_names)}
    ids = []
    for part in parts:
        values = as_integers(part.values, f"label column {column!r} of {part.where}")
        wrong = values[(values < 0) | (values >= len(part.names))]
        if len(wrong):
            raise DataError(
                f"label column {column!r} of {part.where} has label {wrong[0]}, which is no class; correct it, or set "
                "data.test_split where the split has no labels"
            )
        ids.append(np.array([label_of[name] for name in part.names], np.int64)[values])
    return ids, class_names


def _texts(parts: list[LabelPart], column: str, _: str | None) -> tuple[list[np.ndarray], list[str]]:
    texts = [pyarrow.compute.utf8_normalize(part.values.cast(pyarrow.string()), form="NFC") for part in parts]
    for part, values in zip(parts, texts, strict=True):
        row = pyarrow.compute.index(pyarrow.compute.utf8_trim_whitespace(values), "").as_py()
        if row >= 0:
            raise DataError(f"row {row} of {part.where} has no label in column {column!r}; label or remove the row")
    class_names = sorted(set().union(*(values.unique().to_pylist() for values in texts)))
    if len(class_names) > MOST_CLASSES:
        raise DataError(f"label column {column!r} has {len(class_names):,} texts, too many for classes; name another")
    known = pyarrow.array(class_names)
    ids = [pyarrow.compute.index_in(values, known) for values in texts]
    return [labels.to_numpy().astype(np.int64) for labels in ids], class_names


def _numbers(parts: list[LabelPart], column: str, label_values: str | None) -> tuple[list[np.ndarray], list[str]]:
    where = f"label column {column!r}"
    ids = [as_integers(part.values, where) for part in parts]
    values = np.unique(np.concatenate([np.unique(labels) for labels in ids]))
    if label_values == "distinct":
        return [np.searchsorted(values, labels) for labels in ids], distinct_names(values, where)
    return ids, check_ids(values, where, label_values)


def check_ids(values: np.ndarray, where: str, label_values: str | None) -> list[str]:
    """Name the classes of plain integers, which are class ids from 0 on: "0", "1", ... up to the highest.

    If 0 does not occur, or half of the ids do not, the integers may be no ids (1 to 10, or postcodes). That is an error
    unless `label_values` is "ids".

    Args:
        values: the distinct labels, ascending.
        where: name of the labels in errors.

    Raises:
        DataError: a label is no class, or the labels may be no ids.
    """
    low, high = int(values[0]), int(values[-1])
    shown = listed([str(value) for value in values.tolist()], most=5)
    mapping = ", ".join(f"{value} -> {label}" for label, value in enumerate(values[:3].tolist()))
    remedy = f"set data.label_values to distinct, by which {mapping}{', ...' if len(values) > 3 else ''}"
    if low < 0 or high >= MOST_CLASSES:
        raise DataError(
            f"{where} has label {low if low < 0 else high}, which is no class; number the classes from 0 on, {remedy}, "
            "or set data.test_split where the split has no labels"
        )
    if label_values != "ids" and (low > 0 or 2 * len(values) <= high + 1):
        raise DataError(
            f"{where} has the {len(values)} values {shown}: as class ids, {high + 1 - len(values)} of {high + 1} "
            f"classes would have no image; {remedy}, or to ids, if that is meant"
        )
    return [str(label) for label in range(high + 1)]


def distinct_names(values: np.ndarray, where: str) -> list[str]:
    """Name the classes of values of which each is a class; raise DataError if they are too many."""
    if len(values) > MOST_CLASSES:
        raise DataError(f"{where} has {len(values):,} values, too many for classes; name another column")
    return [str(value) for value in values.tolist()]


def as_integers(labels: pyarrow.ChunkedArray, where: str) -> np.ndarray:
    """Cast Arrow integers to int64 (n,).

    Raises:
        DataError: a value does not fit.
    """
    try:
        return labels.cast(pyarrow.int64()).to_numpy()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{where} has a label that is no class: {reason_of(error)}; correct it") from error
