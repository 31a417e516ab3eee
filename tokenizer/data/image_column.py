"""A column of encoded images, stored in a table or as paths: read, decoded, or looked at without decoding."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow.compute

from tokenizer.data.decoding import ImageError, check_file, check_length, decode_image, image_header, read_file


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
        if image.is_valid and image["bytes"].is_valid:
            where = f"image in row {row} of split {self.split!r}"
            check_length(len(image["bytes"].as_buffer()), where)
            return image["bytes"].as_py(), where
        path = image["path"].as_py() if image.is_valid else None
        if path is None:
            there = f"row {row} of split {self.split!r} has no image in column {self.column!r}"
            raise ImageError(f"{there}; remove the row")
        return read_file(path), f"image {path}"

    def decode(self, row: int) -> tuple[PIL.Image.Image, str]:
        """A row's image, upright, in the mode it is stored in, and the words that name it in an error."""
        encoded, where = self.read(row)
        return decode_image(encoded, where), where

    def header(self, row: int) -> tuple[str, tuple[int, int]]:
        """Read the mode and the size (width, height) of a row's image. Raises ImageError where that cannot be."""
        image = self.table.data.column(self.column)[int(row)]
        if image.is_valid and not image["bytes"].is_valid and image["path"].is_valid:
            path = image["path"].as_py()
            check_file(path)
            return image_header(Path(path), f"image {path}")  # of a large file no more is read than its beginning
        encoded, where = self.read(row)
        return image_header(io.BytesIO(encoded), where)

    def sizes(self, rows: np.ndarray, unreadable: bool = False) -> np.ndarray:
        """The lengths in bytes of the rows' encoded images, int64 (n,); no image is read.

        Of one that is not there -1 if `unreadable`, else an error.
        """
        column = self.table.data.column(self.column)
        lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes"))
        sizes = pyarrow.compute.fill_null(lengths, -1).to_numpy()[rows].astype(np.int64)
        in_files = np.flatnonzero(sizes < 0)
        paths = pyarrow.compute.struct_field(column, "path").take(rows[in_files]).to_pylist()
        for place, path in zip(in_files, paths, strict=True):
            try:
                sizes[place] = os.stat(path).st_size  # noqa: PTH116 (a million times: a Path takes longer than the call)
            except (OSError, TypeError):
                if not unreadable:
                    self.read(rows[place])  # which says what is wrong
        return sizes
