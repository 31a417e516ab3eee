"""The image files of a split -> a table of their paths, with their class folders or what a metadata file says."""

import datasets
import numpy as np
import pyarrow as pa

from tokenizer.data.columns import find_columns
from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import DataError
from tokenizer.data.folders.metadata import read_metadata
from tokenizer.data.folders.splits import FolderSplit


def image_table(split: FolderSplit, metadata: list[str], config: DataConfig) -> datasets.Dataset:
    """Make the table of a split: the column image, and label, or the columns of metadata files.

    Class folders say which class an image is of where metadata name no label; metadata do where there is one folder
    or none.

    Raises:
        DataError: metadata that `read_metadata` refuses, or labels by folders and by metadata.
    """
    image = datasets.Image()
    said = read_metadata(metadata, split.images)
    order = range(len(split.images))
    if said is not None:
        said, order = said  # the rows' order is that of the data set
    paths = [split.images[index].path for index in order]
    stored = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), image.pa_type.field("bytes").type), pa.array(paths, image.pa_type.field("path").type)],
        fields=list(image.pa_type),
    )
    columns, features = {"image": stored}, {"image": image}
    if said is not None and "image" in said.column_names:
        said = said.drop_columns(["image"])
    class_names = sorted(set(split.classes or []))
    if said is not None:
        taken = datasets.Features.from_arrow_schema(said.schema)
        _, label = find_columns(datasets.Features(features | taken), config, "the metadata", bool(class_names))
        if label is not None and len(class_names) > 1:
            raise DataError(
                f"the images lie in class folders, such as {class_names[0]}, and column {label!r} of the metadata "
                f"names classes too; remove the column, or move the images into one folder"
            )
        if label is not None or not class_names:
            columns |= {name: said.column(name) for name in said.column_names}
            features |= taken
            class_names = []
    if class_names:
        place = {name: label for label, name in enumerate(class_names)}
        columns["label"] = pa.array(np.array([place[split.classes[index]] for index in order], np.int64))
        features["label"] = datasets.ClassLabel(names=class_names)
    schema = datasets.Features(features).arrow_schema
    return datasets.Dataset(pa.table(columns, schema=schema))
