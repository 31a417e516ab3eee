"""An extracted ImageNet: train/ and val/ folders of class folders -> the tables that `datasets` would make of them.

`datasets` matches the name of every file with some sixty patterns whenever it loads a folder: for a million images a
quarter of an hour at each start. One walk through the folders takes seconds.
"""

import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

# What `datasets` calls the splits of folders with these names.
SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


def read_class_folders(folder: Path) -> dict[str, datasets.Dataset] | None:
    """The splits of folder/<split>/<class>/<image>, paths as images, sorted by path; None of any other layout.

    Other files beside the split folders do not matter, but for metadata, and neither do hidden files.
    """
    found: dict[str, tuple[list[str], list[str]]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir():
            if entry.name.startswith("metadata."):
                return None
            continue
        split = SPLITS.get(entry.name)
        images = _class_images(entry.path) if split and split not in found else None
        if images is None:
            return None
        found[split] = images
    if "train" not in found:
        return None
    class_names = sorted({name for _, classes in found.values() for name in classes})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    return {split: _table(paths, classes, features) for split, (paths, classes) in found.items()}


def _class_images(split_folder: str) -> tuple[list[str], list[str]] | None:
    """The paths of a split's images and each one's class; None where there is anything else, or nothing."""
    endings, images = tuple(ImageFolder.EXTENSIONS), []
    for class_folder in os.scandir(split_folder):
        if not class_folder.is_dir() or class_folder.name.startswith((".", "__")):
            return None
        for entry in os.scandir(class_folder.path):
            if entry.name.startswith("."):
                continue
            if not entry.name.lower().endswith(endings) or entry.is_dir():
                return None
            images.append((entry.path, class_folder.name))
    return tuple(map(list, zip(*sorted(images), strict=True))) if images else None


def _table(paths: list[str], classes: list[str], features: datasets.Features) -> datasets.Dataset:
    image = features.arrow_schema.field("image").type
    bytes_of = pa.nulls(len(paths), image.field("bytes").type)
    ids = {name: label for label, name in enumerate(features["label"].names)}
    columns = {
        "image": pa.StructArray.from_arrays([bytes_of, pa.array(paths, image.field("path").type)], fields=list(image)),
        "label": pa.array(np.array([ids[name] for name in classes], np.int64)),
    }
    return datasets.Dataset(pa.table(columns, schema=features.arrow_schema))
