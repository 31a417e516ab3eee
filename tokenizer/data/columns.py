"""Find the image and the label column of a table, and convert any kind of image column to encoded images."""

import io
import re

import datasets
import numpy as np
import PIL.Image
import pyarrow

from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import DataError
from tokenizer.data.left_out import listed

# What data.label_column is set to where labels are not to be read.
NO_LABELS = "none"

# Names of columns that may hold labels, beside `label` and `labels`, which do.
_MAY_BE_LABELS = re.compile(
    r".*label.*|(sub|super|main|fine|coarse)?_?(class|classes|category|categories|cls|target|targets)"
    r"(_?(id|ids|idx|index|name|names|nr|no|num|number))?|y|species|breed|genre|digit|synset|wnid",
    re.IGNORECASE,
)


def find_columns(
    features: datasets.Features, config: DataConfig, owner: str, has_classes: bool = False
) -> tuple[str, str | None]:
    """Choose the image column and, if any, the label column.

    The config's columns win; else the only image column, and the only class-label column, or `label` or `labels`.

    Args:
        features: features of the table, by column.
        config: config of the data set.
        owner: name of the table in errors.
        has_classes: whether class folders already give the images classes.

    Raises:
        DataError: a named column is missing, several columns may be meant, or a column's name suggests labels.
    """
    columns_text = f"the columns of {owner} are {listed(list(features), 30)}"
    image_column = _image_column(features, config.image_column, columns_text)
    named = config.label_column
    if named is not None:
        if named not in features and named != NO_LABELS:
            raise DataError(f"data.label_column {named!r} is missing: {columns_text}")
        return image_column, named if named in features else None
    class_labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    candidates = class_labels or [column for column in ("label", "labels") if column in features]
    if len(candidates) > 1:
        raise DataError(
            f"{len(candidates)} columns may be the label_column: {columns_text}; set data.label_column to one, or to "
            f"{NO_LABELS}"
        )
    if candidates or has_classes:
        return image_column, candidates[0] if candidates else None
    if may_be := [name for name, feature in features.items() if _MAY_BE_LABELS.fullmatch(name) and _is_plain(feature)]:
        raise DataError(
            f"no column of {owner} is called label; {listed(may_be)} may hold the labels: set data.label_column to "
            f"{' or '.join(may_be[:5])}, or to {NO_LABELS}, by which the images have no classes"
        )
    return image_column, None


def _image_column(features: datasets.Features, named: str | None, columns_text: str) -> str:
    if named is not None:
        if named not in features:
            raise DataError(f"data.image_column {named!r} is missing: {columns_text}")
        return named
    candidates = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(candidates) != 1:
        raise DataError(
            f"{len(candidates) or 'no'} columns may be the image_column: {columns_text}; set data.image_column to one"
        )
    return candidates[0]


def _is_plain(feature: object) -> bool:
    dtype = getattr(feature, "dtype", "")
    return isinstance(feature, datasets.Value) and (dtype.startswith(("int", "uint")) or "string" in dtype)


def as_images(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Select `column` alone, as encoded images.

    Parquet written without `datasets` may hold plain bytes, paths, structs of both, or lists of pixels.

    Raises:
        DataError: the column holds no images, or pixels that are no integers in 0..255.
    """
    table = table.select_columns(column)
    feature = table.features[column]
    if isinstance(feature, datasets.Image):
        return table
    if isinstance(feature, (datasets.List, datasets.LargeList, datasets.Array2D, datasets.Array3D)):
        return _from_pixels(table, column)
    try:
        return table.cast_column(column, datasets.Image())
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"column {column!r} holds {feature}, no images; name another") from error


def _from_pixels(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Encode lists (H, W) or (H, W, C) of integers in 0..255, which `datasets` would take for a wider type."""
    encoded = []
    for row, value in enumerate(table.data.column(column)):
        where = f"row {row} of column {column!r}"
        if not value.is_valid:
            encoded.append(None)
            continue
        try:
            pixels = np.array(value.as_py())
        except ValueError as error:  # rows of several lengths
            raise DataError(f"{where} is no image: its lists are not of one length; correct it") from error
        if pixels.dtype.kind not in "iu" or pixels.ndim not in (2, 3) or not pixels.size:
            raise DataError(
                f"{where} holds {pixels.dtype} values of shape {pixels.shape}, no image; images are lists (height, "
                "width) or (height, width, channels) of integers in 0..255, or encoded, such as PNG"
            )
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 255:
            raise DataError(f"{where} has pixels in {low}..{high}, not in 0..255; store it as a PNG of 16 bits")
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
            raise DataError(f"{where} has shape {pixels.shape}, not (height, width, channels) of 1, 3 or 4 channels")
        content, pixels = io.BytesIO(), pixels.astype(np.uint8)
        image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
        image.save(content, "PPM" if image.mode in ("L", "RGB") else "PNG")
        encoded.append({"bytes": content.getvalue(), "path": None})
    return datasets.Dataset.from_dict({column: encoded}, features=datasets.Features({column: datasets.Image()}))
