"""Encoded images -> pixels: one column of a data set, decoded, and converted to the channels asked for."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps

EXIF_ORIENTATION = 0x0112
BICUBIC = PIL.Image.Resampling.BICUBIC

# What is opened, as far as PIL was built with it. Others start programs (EPS), or hold no picture of this kind. TGA has
# no mark of its own, so it comes last.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")

# These are decoded into buffers of their library, next to the image: of half the pixels that others may have.
_BUFFERED = ("WEBP", "JPEG2000", "AVIF")

# An image of PIL.Image.MAX_IMAGE_PIXELS takes less in any format and mode that is opened.
MAX_ENCODED_BYTES = 2**29

# Side of the tiles in which a large image is converted: copies are of a tile, not of the image.
_TILE = 2048

_SMALLER = "remove it, make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"

# Of a broken image there is an error; of what PIL finds odd about others, millions of lines would be no help. For the
# whole process, as the filters of a `with` block are those of all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DataError(ValueError):
    """Data that cannot be used, in one line which names the file, column or value and the remedy."""

    def __init__(self, message: str):
        # torch rebuilds a worker's error from the text of its traceback, whose last line is the original message.
        if message.startswith(f"Caught {type(self).__name__} in "):
            message = message.rstrip().splitlines()[-1].partition(f"{type(self).__name__}: ")[2]
        super().__init__(" ".join(message.splitlines()))


class ImageError(DataError):
    """One image that cannot be used; those beside it may be whole."""


def decode_image(encoded: bytes, where: str) -> PIL.Image.Image:
    """An encoded image, upright, in the mode it is stored in; `where` names it in an error.

    Raises:
        ImageError: it is broken, of no known format, of several frames, or too large to be decoded.
    """
    check_length(len(encoded), where)
    with _reasons(where):
        image = open_image(io.BytesIO(encoded), where)
        image.load()
        if image.mode.startswith("I"):
            _check_range(image, where)
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = PIL.ImageOps.exif_transpose(image)
    return image


def image_header(source: Path | BinaryIO, where: str) -> tuple[str, tuple[int, int]]:
    """Read the mode and the size (width, height) of an image, upright; `where` names it in an error.

    Raises:
        ImageError: as `decode_image`, but for what only the pixels tell.
    """
    with _reasons(where), open_image(source, where) as image:
        # Of a PNG without EXIF in its header, PIL would look for it behind the pixels.
        there = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)  # PIL turns a TIFF's size
        turned = there and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
        return image.mode, image.size[::-1] if turned else image.size


@contextmanager
def _reasons(where: str) -> Iterator[None]:
    """Whatever PIL raises as an ImageError that says what is wrong with the image."""
    try:
        yield
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:  # its own text holds only the address of a buffer
        known = ", ".join(_formats())
        raise ImageError(f"{where} cannot be decoded: not an image of the formats {known}; replace it") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{where} is too large: {reason_of(error).rstrip('.')}; {_SMALLER}") from error
    except Exception as error:  # what a decoder raises on broken data is open-ended: OSError, struct.error, ...
        raise ImageError(f"{where} cannot be decoded: {reason_of(error)}; remove or replace it") from error


def _check_range(image: PIL.Image.Image, where: str) -> None:
    """Raise ImageError where integers of 16 or 32 bits, which are read as 0..65535, may be meant as 0..255."""
    _, high = image.getextrema()
    if 0 < high <= 255:
        bits = 16 if "16" in image.mode else 32
        raise ImageError(
            f"{where} has integers of {bits} bits up to {high}: black in 0..65535, as which they are read; save it "
            "with 8 bits if they are in 0..255; remove it if it is black"
        )


def read_file(path: str) -> bytes:
    """Read an image file. Raises ImageError where that cannot be."""
    check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}; restore the file") from error


def check_file(path: str) -> None:
    """Raise ImageError where a path is no file that may be read."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a path may hold what a Path takes for an error of its own)
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}; restore the file") from error
    if not stat.S_ISREG(found.st_mode):  # to open a pipe is to wait for its other end
        raise ImageError(f"image {path} cannot be read: it is no file; remove it")
    check_length(found.st_size, f"image {path}")


def check_length(length: int, where: str) -> None:
    """ImageError where an encoded image has more bytes than are read."""
    if length > MAX_ENCODED_BYTES:
        raise ImageError(f"{where} has {length:,} bytes, more than {MAX_ENCODED_BYTES:,}; remove or compress it")


def check_pixels(width: int, height: int, where: str, divisor: int = 1) -> None:
    """ImageError where a size is more pixels than memory is taken for."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit // divisor:
        raise ImageError(f"{where} is too large: {width}x{height}, more than {limit // divisor:,} pixels; {_SMALLER}")


def open_image(source: Path | BinaryIO, where: str) -> PIL.Image.Image:
    """The image, its pixels not yet decoded. ImageError: several frames, or too large; what PIL raises besides."""
    image = PIL.Image.open(source, formats=_formats())
    check_pixels(*image.size, where, 2 if image.format in _BUFFERED else 1)
    if not all(image.size):
        raise ImageError(f"{where} is {image.width}x{image.height}, without a pixel; remove it")
    # The second picture of a phone's JPEG (MPO) is a preview, or the same from further right.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        # Of a GIF or TIFF only counted by reading all of it.
        frames = vars(image).get("n_frames", "several")
        raise ImageError(f"{where} has {frames} frames; save the one to use as an image of its own")
    return image


@cache
def _formats() -> tuple[str, ...]:
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Give the endings of file names that are read as images, in lower case, each with its dot."""
    formats = (*_formats(), "MPO")  # a phone's JPEG of several pictures
    return frozenset(suffix for suffix, name in PIL.Image.registered_extensions().items() if name in formats)


def convert(image: PIL.Image.Image, channels: int, where: str) -> PIL.Image.Image:
    """An image of any mode as L (channels 1) or RGB (channels 3), 8 bits. ImageError: it has no such form."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise ImageError(f"{where} has float values, whose range is not defined; save it with 8 or 16 bits")
    try:
        if image.mode == "I":
            low, high = image.getextrema()
            if low < 0 or high > 65535:
                found = f"{low}..{high}"
                raise ImageError(f"{where} has values {found}, which do not fit 0..65535; save it with 8 or 16 bits")
        if image.mode == mode and not image.has_transparency_data:
            return image
        if max(image.size) <= _TILE:
            return _converted(image, mode)
        converted = PIL.Image.new(mode, image.size)
        for box in _tiles(*image.size):
            converted.paste(_converted(image.crop(box), mode), box)
        return converted
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"{where} has mode {image.mode}, which has no RGB form; save it as RGB") from error
    except Exception as error:  # of a broken palette or transparency, or for want of memory
        raise ImageError(f"{where} cannot be converted to {mode}: {reason_of(error)}; save it as RGB") from error


def _converted(image: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))  # round(value / 257)
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert(mode)


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            yield left, top, min(left + _TILE, width), min(top + _TILE, height)


def reason_of(error: Exception) -> str:
    """The error's first line; `datasets` wraps a file it cannot parse in an error that says nothing."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
