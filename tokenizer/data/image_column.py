"""A column of encoded images, stored in a table or as paths: read, decode, or read headers only."""

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
    """One split's encoded images. Holds the table, not its Arrow column: a table is sent to a worker as a path."""

    table: datasets.Dataset
    column: str
    split: str

    def read(self, row: int) -> tuple[bytes, str]:
        """Read a row's encoded image, and its name for errors."""
        # Read from Arrow directly: formatting a row with `datasets` takes longer than decoding a small image.
        image = self.table.data.column(self.column)[int(row)]
        if image.is_valid and image["bytes"].is_valid:
            where = f"image in row {row} of split {self.split!r}"
            check_length(len(image["bytes"].as_buffer()), where)
            return image["bytes"].as_py(), where
        path = image["path"].as_py() if image.is_valid else None
        if path is None:
            problem = f"row {row} of split {self.split!r} has no image in column {self.column!r}"
            raise ImageError(f"{problem}; remove the row")
        return read_file(path), f"image {path}"

    def decode(self, row: int) -> tuple[PIL.Image.Image, str]:
        """Decode a row's image, upright, in its stored mode; also returns its name for errors."""
        encoded, where = self.read(row)
        return decode_image(encoded, where), where

    def header(self, row: int) -> tuple[str, tuple[int, int]]:
        """Read the mode and the size (width, height) of a row's image; raise ImageError if that fails."""
        image = self.table.data.column(self.column)[int(row)]
        if image.is_valid and not image["bytes"].is_valid and image["path"].is_valid:
            path = image["path"].as_py()
            check_file(path)
            return image_header(Path(path), f"image {path}")  # reads only the beginning of a large file
        encoded, where = self.read(row)
        return image_header(io.BytesIO(encoded), where)

    def sizes(self, rows: np.ndarray, unreadable: bool = False) -> np.ndarray:
        """Return the bytes of the rows' encoded images, int64 (n,), without reading them.

        A missing image gives -1 if `unreadable`, else an error.
        """
        column = self.table.data.column(self.column)
        lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes"))
        sizes = pyarrow.compute.fill_null(lengths, -1).to_numpy()[rows].astype(np.int64)
        in_files = np.flatnonzero(sizes < 0)
        paths = pyarrow.compute.struct_field(column, "path").take(rows[in_files]).to_pylist()
        for index, path in zip(in_files, paths, strict=True):
            try:
                sizes[index] = os.stat(path).st_size  # noqa: PTH116 (a million times: a Path takes longer than the call)
            except (OSError, TypeError):
                if not unreadable:
                    self.read(rows[index])  # raises the precise error
        return sizes
