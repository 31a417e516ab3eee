"""A data set's name, folder or address -> its images, decoded when asked for, in memory, or streamed -> batches.

A batch is {"images": float32 (B, C, S, S) in [-1, 1], "labels": int64 (B,)}.
"""

from typing import Literal

import numpy as np
import torch

from tokenizer.bad_images import BadImages
from tokenizer.batches import StepBatches, epoch_order, evaluation_batches, training_batches
from tokenizer.data_config import DataConfig, first_size_and_channels, held_out_split
from tokenizer.data_sources import as_images, find_columns, load_tables, read_labels
from tokenizer.decoded import hold_in_memory, pixel_batches
from tokenizer.image_dataset import ImageDataset
from tokenizer.image_files import DataError, ImageColumn
from tokenizer.streamed_images import StreamedImages, load_streamed

__all__ = [
    "DataConfig",
    "DataError",
    "ImageDataset",
    "StepBatches",
    "StreamedImages",
    "epoch_order",
    "evaluation_batches",
    "hold_in_memory",
    "load_images",
    "pixel_batches",
    "training_batches",
]


def load_images(config: DataConfig, split: Literal["train", "test"]) -> ImageDataset | StreamedImages:
    """The train or the held-out images of a data set; nothing but the first usable image is decoded.

    The held-out split is `config.test_split`, else the one called test, else validation, valid or val. Where there is
    none, every tenth image of `epoch_order(n, 0, 0)` is held out of the train split, the same ones in every run (of
    streamed images: an error). Sizes, channels and classes that the config leaves open come from the train split
    (classes that are plain integers or strings: from both), so that the two agree. A data set without labels is one
    class, "image".

    Raises:
        DataError: the data set, a split or a column is missing or ambiguous, or labels or the first image are unusable.
    """
    config.check()
    if split not in ("train", "test"):
        raise DataError(f"split {split!r} is neither 'train' nor 'test'")
    if config.streaming:
        return load_streamed(config, split)
    tables = load_tables(config.name)
    if "train" not in tables:
        raise DataError(f"data set {config.name!r} has no train split, only {', '.join(tables)}; rename one to train")

    held_out = held_out_split(tables, config) or "train"
    rows = {"train": np.arange(len(tables["train"])), "test": np.arange(len(tables[held_out]))}
    if held_out == "train":
        rows["test"] = np.sort(epoch_order(len(tables["train"]), 0, 0).numpy()[9::10])
        rows["train"] = np.delete(rows["train"], rows["test"])
        if split == "test" and not len(rows["test"]):
            raise DataError(
                f"data set {config.name!r} has {len(tables['train'])} images and no test split: "
                "add a test split, or at least 10 images so that every tenth can be held out"
            )
    source = {"train": "train", "test": held_out}

    image_column, label_column = find_columns(tables["train"].features, config, repr(config.name))
    used = {name: tables[name] for name in source.values()}
    labels, class_names = read_labels(used, label_column, config.label_column is not None)
    columns = {name: ImageColumn(as_images(table, image_column), image_column, name) for name, table in used.items()}
    stored, of_train = columns["train"], rows["train"]
    image_size, channels = first_size_and_channels(len(of_train), lambda index: stored.decode(of_train[index]), config)
    return ImageDataset(
        encoded=columns[source[split]],
        rows=rows[split],
        labels=torch.from_numpy(labels[source[split]][rows[split]]),
        class_names=class_names,
        framing=config.framing(image_size, split),
        channels=channels,
        name=config.name,
        split=split,
        bad_images=BadImages(len(rows[split])) if config.on_bad_image == "skip" else None,
    )
