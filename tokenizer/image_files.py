"""Encoded images -> pixels: one column of a data set, decoded, and converted to the channels asked for."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow.compute

EXIF_ORIENTATION = 0x0112
BICUBIC = PIL.Image.Resampling.BICUBIC


class DataError(ValueError):
    """Data that cannot be used, in one line which names the file, column or value and the remedy."""

    def __init__(self, message: str):
        # torch rebuilds a worker's error from the text of its traceback, whose last line is the original message.
        if message.startswith("Caught DataError in "):
            message = message.rstrip().splitlines()[-1].partition("DataError: ")[2]
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True)
class ImageColumn:
    """One split's images, encoded. It keeps the table, not its Arrow column: a table goes to a worker as a path."""

    table: datasets.Dataset
    column: str
    split: str

    def read(self, row: int) -> tuple[bytes, str]:
        """A row's encoded image and the words that name it in an error."""
        # Straight from Arrow: formatting a row through `datasets` takes longer than decoding a small image.
        image = self.table.data.column(self.column)[int(row)]
        encoded, path = (image["bytes"].as_py(), image["path"].as_py()) if image.is_valid else (None, None)
        if encoded is not None:
            return encoded, f"image in row {row} of split {self.split!r}"
        if path is None:
            raise DataError(f"row {row} of split {self.split!r} has no image in column {self.column!r}; remove the row")
        try:
            return Path(path).read_bytes(), f"image {path}"
        except OSError as error:
            raise DataError(f"image {path} cannot be read: {error.strerror}; restore the file") from error

    def decode(self, row: int) -> tuple[PIL.Image.Image, str]:
        """A row's image, upright, in the mode it is stored in, and the words that name it in an error."""
        encoded, where = self.read(row)
        return decode_image(encoded, where), where

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """The lengths in bytes of the rows' encoded images, int64 (n,); no image is read."""
        column = self.table.data.column(self.column)
        lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes"))
        sizes = pyarrow.compute.fill_null(lengths, -1).to_numpy()[rows].astype(np.int64)
        in_files = np.flatnonzero(sizes < 0)
        paths = pyarrow.compute.struct_field(column, "path").take(rows[in_files]).to_pylist()
        for place, path in zip(in_files, paths, strict=True):
            try:
                sizes[place] = os.stat(path).st_size  # noqa: PTH116 (a million times: a Path takes longer than the call)
            except (OSError, TypeError):
                self.read(rows[place])  # which says what is wrong
        return sizes


def decode_image(encoded: bytes, where: str) -> PIL.Image.Image:
    """An encoded image, upright, in the mode it is stored in; `where` names it in an error."""
    try:
        image = PIL.Image.open(io.BytesIO(encoded))
        image.load()
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = PIL.ImageOps.exif_transpose(image)
    except PIL.UnidentifiedImageError as error:  # its own text holds only the address of a buffer
        raise DataError(f"{where} cannot be decoded: not an image format known to PIL; replace it") from error
    except Exception as error:  # what a decoder raises on broken data is open-ended: OSError, struct.error, ...
        raise DataError(f"{where} cannot be decoded: {reason_of(error)}; remove or replace it") from error
    return image


def convert(image: PIL.Image.Image, channels: int, where: str) -> PIL.Image.Image:
    """An image of any mode as L (channels 1) or RGB (channels 3), 8 bits."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            found = f"{values.min()}..{values.max()}"
            raise DataError(f"{where} has values {found}, which do not fit 0..65535; save it with 8 or 16 bits")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))  # round(value / 257)
    elif image.mode == "F":
        raise DataError(f"{where} has float values, whose range is not defined; save it with 8 or 16 bits")
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return image
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB").convert(mode)
    except ValueError as error:
        raise DataError(f"{where} has mode {image.mode}, which has no RGB form; save it as RGB") from error


def reason_of(error: Exception) -> str:
    """The error's first line; `datasets` wraps a file it cannot parse in an error that says nothing."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
