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
    """The header of one array of an npz file; `offset` is that of its data, None if they are compressed."""

    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype
    offset: int | None

    def mapped(self, file: Path) -> np.ndarray | None:
        """Map the array into memory; return None if it is compressed."""
        if self.offset is None:
            return None
        return np.memmap(file, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)


def npz_headers(file: Path) -> dict[str, Header]:
    """Read the headers of arr_0 and, if it exists, arr_1. ValueError: the file or arr_0 is missing."""
    names, headers = array_headers(file, ("arr_0", "arr_1"), _SAVE_IMAGES)
    if "arr_0" not in headers:
        raise ValueError(f"{file} has no array arr_0, only {', '.join(names)}; {_SAVE_IMAGES}")
    return headers


def array_headers(file: Path, wanted: Sequence[str], remedy: str) -> tuple[list[str], dict[str, Header]]:
    """List the names of all members of an npz, and read the headers of the wanted arrays that exist.

    Args:
        file: the npz.
        wanted: names of arrays.
        remedy: end of the error message.

    Raises:
        ValueError: the file does not exist, or is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            present = [name for name in wanted if f"{name}.npy" in names]
            return names, {name: _header(file, archive, archive.getinfo(f"{name}.npy")) for name in present}
    except Exception as error:  # zipfile and numpy raise errors of many classes
        raise no_npz(file, error, remedy) from error


def _header(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as content:
        version = npy.read_magic(content)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(content)
        start = content.tell()
    # Check this before memory is allocated: a header may claim any shape, and Python objects can run code.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - start:
        raise ValueError(
            f"{member.filename} is said to be {dtype} {shape}, which its {member.file_size:,} bytes are not"
        )
    if member.compress_type != zipfile.ZIP_STORED:
        return Header(shape, by_columns, dtype, None)
    with file.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # in the local header: lengths of the name and of the extra field
        lengths = np.frombuffer(raw.read(4), "<u2")
    return Header(shape, by_columns, dtype, member.header_offset + 30 + int(lengths.sum()) + start)


def no_npz(file: Path, error: Exception, remedy: str = _SAVE_IMAGES) -> ValueError:
    """Make the error that says why the file cannot be read."""
    return ValueError(f"{file} cannot be read as an npz: {reason_of(error)}; {remedy}")
