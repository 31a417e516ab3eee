"""A data set's name -> its tables, the columns that hold images and labels, the labels and their names."""

from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.compute
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tokenizer.class_folders import read_class_folders
from tokenizer.data_config import DataConfig
from tokenizer.image_files import BICUBIC, DataError, reason_of

# Labels are numbers from 0 on: one beyond this is a hash, a time, or broken.
MOST_CLASSES = 2**20

HUB_IDS = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}


def load_tables(name: str) -> dict[str, datasets.Dataset]:
    """All splits of a data set by their own names; digits, mnist and cifar10 are never taken for folders."""
    if name == "digits":
        return _digits()
    folder = Path(name).expanduser()
    is_folder = bool(name) and name not in HUB_IDS and folder.is_dir()
    if not is_folder and (name.startswith((".", "/", "~")) or folder.is_file()):
        raise DataError(f"data folder {name!r} is not there or is not a folder; set data.name to a folder")
    if is_folder and (tables := read_class_folders(folder.absolute())) is not None:
        return tables
    try:
        # Absolute: a relative folder called csv or parquet would be taken for one of the formats of `datasets`.
        return datasets.load_dataset(str(folder.absolute()) if is_folder else HUB_IDS.get(name, name))
    except Exception as error:  # builders and the Hub client raise errors of many unrelated classes
        if is_folder:
            raise DataError(f"folder {name!r} cannot be loaded as images or parquet: {reason_of(error)}") from error
        kind = "" if name in HUB_IDS else "is neither digits, mnist, cifar10 nor a folder here, and "
        remedy = "set data.name to a folder or to a data set within reach"
        raise DataError(
            f"data set {name!r} {kind}could not be loaded from the Hub: {reason_of(error)}; {remedy}"
        ) from error


def _digits() -> dict[str, datasets.Dataset]:
    """scikit-learn's 1,797 digits of 8x8, enlarged to 32x32, in a fixed stratified split of 1,437 and 360."""
    images, targets = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # PPM is not compressed: quick to decode, and the fingerprint does not depend on the version of zlib.
    encoded = [b"P5 32 32 255 " + PIL.Image.fromarray(digit).resize((32, 32), BICUBIC).tobytes() for digit in pixels]
    label = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    train, test = train_test_split(np.arange(len(targets)), test_size=360, stratify=targets, random_state=0)
    splits = {}
    for split, rows in (("train", train), ("test", test)):
        columns = {"image": [{"bytes": encoded[row], "path": None} for row in rows], "label": targets[rows]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def find_columns(features: datasets.Features, config: DataConfig, owner: str) -> tuple[str, str | None]:
    """The image column and, where there is one, the label column: those named, else those their types point to."""
    of_type = {
        kind: [column for column, feature in features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    }
    plain_labels = [column for column in ("label", "labels") if column in features]
    there = f"the columns of {owner} are {', '.join(features)}"
    chosen = []
    for option, named, found, required in (
        ("image_column", config.image_column, of_type[datasets.Image], True),
        ("label_column", config.label_column, of_type[datasets.ClassLabel] or plain_labels, False),
    ):
        if named is not None and named not in features:
            raise DataError(f"data.{option} {named!r} is missing: {there}")
        if named is None and (len(found) > 1 or (required and not found)):
            raise DataError(f"{len(found) or 'no'} columns may be the {option}: {there}; set data.{option} to one")
        chosen.append(named or (found[0] if found else None))
    return chosen[0], chosen[1]


def as_images(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """`column` alone, as images: parquet written without `datasets` may hold plain bytes, paths or structs of both."""
    table = table.select_columns(column)
    if isinstance(table.features[column], datasets.Image):
        return table
    try:
        return table.cast_column(column, datasets.Image())
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"column {column!r} holds {table.features[column]}, no images; name another") from error


def read_labels(
    tables: dict[str, datasets.Dataset], column: str | None, named: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Every split's labels, int64 (n,), and the class names that all splits share."""
    arrow = {} if column is None else {split: table.data.column(column) for split, table in tables.items()}
    # A train/ and a test/ folder without class folders come with a label column, null throughout the train split.
    if column is None or (not named and arrow["train"].null_count == len(arrow["train"])):
        return {split: np.zeros(len(table), dtype=np.int64) for split, table in tables.items()}, ["image"]
    for split, values in arrow.items():
        if values.null_count:
            row = pyarrow.compute.index(pyarrow.compute.is_null(values), True).as_py()
            raise DataError(f"row {row} of split {split!r} has no label in column {column!r}; label or remove the row")
    feature = tables["train"].features[column]
    dtype = getattr(feature, "dtype", "")
    if dtype in ("string", "large_string"):
        class_names = sorted(set().union(*(values.unique().to_pylist() for values in arrow.values())))
        known = pyarrow.array(class_names)
        ids = {split: pyarrow.compute.index_in(values.cast(known.type), known) for split, values in arrow.items()}
        return {split: values.to_numpy().astype(np.int64) for split, values in ids.items()}, class_names
    if not dtype.startswith(("int", "uint")):
        raise DataError(f"label column {column!r} holds {feature}, not integers or strings; set data.label_column")
    labels = {split: as_integers(values, f"label column {column!r}") for split, values in arrow.items()}
    values = np.concatenate(list(labels.values()))
    if not len(values):
        return labels, []
    low, high = values.min(), values.max()
    numbered = not isinstance(feature, datasets.ClassLabel)
    class_names = numbered_classes(high, f"label column {column!r}") if numbered else feature.names
    if low < 0 or high >= len(class_names):
        raise DataError(f"label column {column!r} has label {low if low < 0 else high}, which is no class; correct it")
    return labels, class_names


def as_integers(labels: pyarrow.ChunkedArray, where: str) -> np.ndarray:
    """Arrow integers as int64 (n,). DataError: one is larger than that."""
    try:
        return labels.cast(pyarrow.int64()).to_numpy()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{where} has a label that is no class: {reason_of(error)}; correct it") from error


def numbered_classes(highest: int, where: str) -> list[str]:
    """The names of classes that have none: their numbers, up to the highest. DataError: that is no class."""
    if highest >= MOST_CLASSES:
        raise DataError(f"{where} has label {highest}, which is no class; number the classes from 0 on")
    return [str(label) for label in range(highest + 1)]
