"""Build the table of a split's image files: their paths, and class folders or metadata."""

import datasets
import numpy as np
import pyarrow as pa

from tokenizer.data.columns import find_columns
from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import DataError
from tokenizer.data.folders.metadata import read_metadata
from tokenizer.data.folders.splits import FolderSplit


def image_table(split: FolderSplit, metadata: list[str], config: DataConfig) -> datasets.Dataset:
    """Build the table of a split: column image, and label or the columns of metadata files.

    Class folders define the classes if the metadata have no label column; the metadata do if there is at most one class
    folder.

    Raises:
        DataError: metadata that `read_metadata` refuses, or labels both by folders and by metadata.
    """
    image = datasets.Image()
    rows, order = read_metadata(metadata, split.images) or (None, range(len(split.images)))
    paths = [split.images[index].path for index in order]
    stored = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), image.pa_type.field("bytes").type), pa.array(paths, image.pa_type.field("path").type)],
        fields=list(image.pa_type),
    )
    columns, features = {"image": stored}, {"image": image}
    if rows is not None and "image" in rows.column_names:
        rows = rows.drop_columns(["image"])
    class_names = sorted(set(split.classes or []))
    if rows is not None:
        row_features = datasets.Features.from_arrow_schema(rows.schema)
        _, label = find_columns(datasets.Features(features | row_features), config, "the metadata", bool(class_names))
        if label is not None and len(class_names) > 1:
            raise DataError(
                f"the images lie in class folders, such as {class_names[0]}, and column {label!r} of the metadata "
                f"names classes too; remove the column, or move the images into one folder"
            )
        if label is not None or not class_names:
            columns |= {name: rows.column(name) for name in rows.column_names}
            features |= row_features
            class_names = []
    if class_names:
        label_of = {name: label for label, name in enumerate(class_names)}
        columns["label"] = pa.array(np.array([label_of[split.classes[index]] for index in order], np.int64))
        features["label"] = datasets.ClassLabel(names=class_names)
    schema = datasets.Features(features).arrow_schema
    return datasets.Dataset(pa.table(columns, schema=schema))
