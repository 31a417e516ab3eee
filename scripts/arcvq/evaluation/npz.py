"""Read and check the headers of an npz file's arrays before the arrays are read."""

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from tokenizer.data.decoding import reason_of

_SAVE_IMAGES = "save images with numpy.savez"


@dataclass(frozen=True)
class Header:
    """Describe one array of an npz file; `offset` is that of its data where they are stored uncompressed."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    offset: int | None

    def mapped(self, file: Path) -> np.ndarray | None:
        """The array, mapped into memory; None where it is compressed."""
        if self.offset is None:
            return None
        return np.memmap(file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


def npz_headers(file: Path) -> dict[str, Header]:
    """Those of arr_0 and, where it is there, arr_1; no array is read. ValueError: no such file, or arr_0 is missing."""
    names, headers = array_headers(file, ("arr_0", "arr_1"), _SAVE_IMAGES)
    if "arr_0" not in headers:
        raise ValueError(f"{file} has no array arr_0, only {', '.join(names)}; {_SAVE_IMAGES}")
    return headers


def array_headers(file: Path, wanted: Sequence[str], remedy: str) -> tuple[list[str], dict[str, Header]]:
    """The names of all in an npz, and the headers of those arrays that are wanted and there; no array is read.

    Raises:
        ValueError: no such file, or a broken one; the `remedy` is part of its words.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            found = [name for name in wanted if f"{name}.npy" in names]
            return names, {name: _header(file, archive, archive.getinfo(f"{name}.npy")) for name in found}
    except Exception as error:  # zipfile and numpy raise errors of many classes on what is broken
        raise no_npz(file, error, remedy) from error


def _header(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as content:
        version = npy.read_magic(content)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(content)
        start = content.tell()
    # Before memory is taken: a header may name any shape, and Python objects are programs.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - start:
        raise ValueError(
            f"{member.filename} is said to be {dtype} {shape}, which its {member.file_size:,} bytes are not"
        )
    if member.compress_type != zipfile.ZIP_STORED:
        return Header(shape, by_columns, dtype, None)
    with file.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # of a local header: lengths of the name and of the extra field
        lengths = np.frombuffer(raw.read(4), "<u2")
    return Header(shape, by_columns, dtype, member.header_offset + 30 + int(lengths.sum()) + start)


def no_npz(file: Path, error: Exception, remedy: str = _SAVE_IMAGES) -> ValueError:
    """The error that says that the file cannot be read."""
    return ValueError(f"{file} cannot be read as an npz: {reason_of(error)}; {remedy}")
