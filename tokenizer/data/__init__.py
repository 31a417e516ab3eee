"""Load a data set: its name, folder or address -> images (decoded on demand, in memory or streamed) -> batches.

A batch is {"images": float32 (B, C, S, S) in [-1, 1], "labels": int64 (B,)}, on the device that asks for it.
"""

from typing import Literal

import numpy as np
import torch

from tokenizer.data.bad_images import BadImages
from tokenizer.data.batches import evaluation_batches, training_batches
from tokenizer.data.columns import NO_LABELS, as_images, find_columns
from tokenizer.data.config import DataConfig
from tokenizer.data.dataset import ImageDataset
from tokenizer.data.decoding import DataError
from tokenizer.data.image_column import ImageColumn
from tokenizer.data.in_memory import load_into_memory, pixel_batches
from tokenizer.data.kinds import SAMPLE, image_kind
from tokenizer.data.labels import class_ids
from tokenizer.data.sources import Source, SplitTable, load_source
from tokenizer.data.splits import DataSplits
from tokenizer.data.step_batches import StepBatches, epoch_order
from tokenizer.data.streaming.images import StreamedImages
from tokenizer.data.streaming.splits import load_streamed

__all__ = [
    "DataConfig",
    "DataError",
    "DataSplits",
    "ImageDataset",
    "StepBatches",
    "StreamedImages",
    "epoch_order",
    "evaluation_batches",
    "load_images",
    "load_into_memory",
    "load_splits",
    "pixel_batches",
    "training_batches",
]


def load_images(config: DataConfig, split: Literal["train", "test"]) -> ImageDataset | StreamedImages:
    """Load the train or the held-out images of a data set, as `load_splits` does.

    Raises:
        DataError: as `load_splits`, or no image is held out.
    """
    if split not in ("train", "test"):
        raise DataError(f"split {split!r} is neither 'train' nor 'test'")
    splits = load_splits(config)
    return splits.train if split == "train" else splits.held_out


def load_splits(config: DataConfig) -> DataSplits:
    """Load both splits of a data set; of all images only the first usable one is decoded.

    The held-out split is `config.test_split`, else test, else validation, evaluation or dev (see `split_names`). If a
    data set has none, every tenth image of `epoch_order(n, 0, 0)` is held out of the train split, the same ones in
    every run; streamed data sets then have no held-out split. With `config.hold_out`, that many images, the first ones
    of the same order, are held out of the train split, and no other split is read. Size and channels not set in the
    config are those of the train split; classes are those of both splits. A data set without labels has one class,
    "image".

    Raises:
        DataError: the data set, a split or a column is missing or ambiguous, an image belongs to no split or class, or
            labels or the first image are unusable.
    """
    config.check()
    if config.streaming:
        return load_streamed(config)
    source = load_source(config)
    number = len(source.train.rows)
    rows, held_out_rows = np.arange(number), np.zeros(0, np.int64)
    notes, without = list(source.notes), None
    if source.held_out is not None:
        held_out_rows = np.arange(len(source.held_out.rows))
    elif config.hold_out:
        config.check_hold_out(number)
        held_out_rows = np.sort(epoch_order(number, 0, 0).numpy()[: config.hold_out])
        rows = np.delete(rows, held_out_rows)
        notes += [f"held out: {config.hold_out} of the {number} images of split train"]
    else:
        held_out_rows = np.sort(epoch_order(number, 0, 0).numpy()[9::10])
        rows = np.delete(rows, held_out_rows)
        notes += ["held out: every tenth image"] if len(held_out_rows) else []
    if not len(held_out_rows):
        without = (
            f"data set {config.name!r} has {number} images and no test split: add a test split, or at least 10 images "
            "so that every tenth can be held out"
        )
    images, labels, class_names = _columns(source, config)
    train = images["train"]
    sample = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(np.int64)).tolist()
    kind = image_kind(
        len(rows), lambda index: train.decode(rows[index]), lambda index: train.header(rows[index]), sample, config
    )

    def split_images(split: Literal["train", "test"], name: str, table_rows: np.ndarray) -> ImageDataset:
        return ImageDataset(
            encoded=images[name],
            rows=table_rows,
            labels=torch.from_numpy(labels[name][table_rows]),
            class_names=class_names,
            framing=config.framing(kind.image_size, split),
            channels=kind.channels,
            name=config.name,
            split=f"hold-out-{config.hold_out}" if config.hold_out and split == "test" else split,
            bad_images=BadImages(len(table_rows)) if config.on_bad_image == "skip" else None,
        )

    name = "train" if source.held_out is None else source.held_out.name
    held_out = None if without else split_images("test", name, held_out_rows)
    return DataSplits(split_images("train", "train", rows), held_out, source.left_out, notes + kind.notes, without)


def _columns(source: Source, config: DataConfig) -> tuple[dict[str, ImageColumn], dict[str, np.ndarray], list[str]]:
    """Read the images and labels, int64 (n,), of each split by name, and the class names."""
    tables = [source.train] + ([] if source.held_out is None else [source.held_out])
    owner = f"data set {config.name!r}"
    image_column, label_column = find_columns(source.train.rows.features, config, owner)
    if label_column is not None and config.label_column is None and _is_null(source.train, label_column):
        label_column = None
    for table in tables[1:]:
        _check_alike(table, image_column, label_column, owner, config)
    images = {
        table.name: ImageColumn(as_images(table.rows, image_column), image_column, table.name) for table in tables
    }
    if label_column is None:
        if config.label_values is not None:
            raise DataError(
                f"data.label_values is {config.label_values}, but {owner} has no label column; leave it out"
            )
        return images, {table.name: np.zeros(len(table.rows), np.int64) for table in tables}, ["image"]
    parts = {table.name: table.labels(label_column) for table in tables}
    return images, *class_ids(parts, label_column, config.label_values)


def _is_null(table: SplitTable, column: str) -> bool:
    """Tell whether a label column exists but is all null, as `datasets` writes it for data without classes."""
    values = table.rows.data.column(column)
    return len(values) > 0 and values.null_count == len(values)


def _check_alike(
    table: SplitTable, image_column: str, label_column: str | None, owner: str, config: DataConfig
) -> None:
    """Raise DataError if the held-out split lacks columns of the train split, or has labels that train lacks."""
    columns = table.rows.features
    if image_column not in columns:
        raise DataError(f"split {table.name!r} of {owner} has no column {image_column!r}, only {', '.join(columns)}")
    if label_column is not None and label_column not in columns:
        raise DataError(
            f"split {table.name!r} of {owner} has no labels, the train split has; put its images into class folders, "
            f"set data.test_split to another split, or data.label_column to {NO_LABELS}"
        )
    if label_column is None and config.label_column is None:
        _, own_labels = find_columns(columns, config, f"split {table.name!r} of {owner}")
        if own_labels is not None and not _is_null(table, own_labels):
            raise DataError(
                f"split {table.name!r} of {owner} has labels, the train split has none; label its images, or set "
                f"data.label_column to {NO_LABELS}"
            )
