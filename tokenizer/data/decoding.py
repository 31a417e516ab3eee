"""Decode images: encoded bytes -> an upright image -> L or RGB with 8 bits."""

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

# Formats that are opened, as far as PIL was built with them. Others start programs (EPS) or hold no such picture. TGA
# has no magic number, so it comes last.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")

# The libraries of these formats decode into a buffer of their own, so an image may have half as many pixels.
_BUFFERED = ("WEBP", "JPEG2000", "AVIF")

# More than an image of PIL.Image.MAX_IMAGE_PIXELS takes in any of these formats and modes.
MAX_ENCODED_BYTES = 2**29

# Side of the tiles in which large images are converted, so that intermediate copies are small.
_TILE = 2048

_SMALLER = "remove it, make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"

# Broken images raise errors; PIL's warnings about odd ones would be millions of lines. Set for the whole process,
# because the filters of a `with` block apply to all threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class DataError(ValueError):
    """Unusable data; the message is one line that names the file, column or value and the remedy."""

    def __init__(self, message: str):
        # torch rebuilds a worker's error from the text of its traceback, whose last line is the original message.
        if message.startswith(f"Caught {type(self).__name__} in "):
            message = message.rstrip().splitlines()[-1].partition(f"{type(self).__name__}: ")[2]
        super().__init__(" ".join(message.splitlines()))


class ImageError(DataError):
    """One unusable image; other images of the data set may be intact."""


def decode_image(encoded: bytes, where: str) -> PIL.Image.Image:
    """Decode an image, upright, in its stored mode; `where` names it in errors.

    Raises:
        ImageError: it is broken, of an unknown format, has several frames, or is too large.
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
    """Read the mode and the size (width, height) of an image, upright; `where` names it in errors.

    Raises:
        ImageError: as `decode_image`, except for errors that only decoding the pixels reveals.
    """
    with _reasons(where), open_image(source, where) as image:
        # For a PNG without EXIF in its header, PIL would search behind the pixels. PIL itself turns a TIFF's size.
        has_exif = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        turned = has_exif and image.getexif().get(EXIF_ORIENTATION, 1) >= 5
        return image.mode, image.size[::-1] if turned else image.size


@contextmanager
def _reasons(where: str) -> Iterator[None]:
    """Turn any error of PIL into an ImageError that says what is wrong with the image."""
    try:
        yield
    except ImageError:
        raise
    except PIL.UnidentifiedImageError as error:  # its own text holds only the address of a buffer
        known = ", ".join(_formats())
        raise ImageError(f"{where} cannot be decoded: not an image of the formats {known}; replace it") from error
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{where} is too large: {reason_of(error).rstrip('.')}; {_SMALLER}") from error
    except Exception as error:  # decoders raise many classes on broken data: OSError, struct.error, ...
        raise ImageError(f"{where} cannot be decoded: {reason_of(error)}; remove or replace it") from error


def _check_range(image: PIL.Image.Image, where: str) -> None:
    """Raise ImageError if 16- or 32-bit integers, read as 0..65535, look as if they were meant as 0..255."""
    _, high = image.getextrema()
    if 0 < high <= 255:
        bits = 16 if "16" in image.mode else 32
        raise ImageError(
            f"{where} has integers of {bits} bits up to {high}: black in 0..65535, as which they are read; save it "
            "with 8 bits if they are in 0..255; remove it if it is black"
        )


def read_file(path: str) -> bytes:
    """Read an image file; raise ImageError if that fails."""
    check_file(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}; restore the file") from error


def check_file(path: str) -> None:
    """Raise ImageError if a path is no regular file, or is too large."""
    try:
        status = os.stat(path)  # noqa: PTH116 (Path itself raises other errors for some texts)
    except OSError as error:
        raise ImageError(f"image {path} cannot be read: {error.strerror}; restore the file") from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
        raise ImageError(f"image {path} cannot be read: it is no file; remove it")
    check_length(status.st_size, f"image {path}")


def check_length(length: int, where: str) -> None:
    """Raise ImageError if an encoded image has more than MAX_ENCODED_BYTES."""
    if length > MAX_ENCODED_BYTES:
        raise ImageError(f"{where} has {length:,} bytes, more than {MAX_ENCODED_BYTES:,}; remove or compress it")


def check_pixels(width: int, height: int, where: str, divisor: int = 1) -> None:
    """Raise ImageError if an image has more pixels than PIL.Image.MAX_IMAGE_PIXELS / divisor."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit // divisor:
        raise ImageError(f"{where} is too large: {width}x{height}, more than {limit // divisor:,} pixels; {_SMALLER}")


def open_image(source: Path | BinaryIO, where: str) -> PIL.Image.Image:
    """Open an image without decoding its pixels.

    Raises:
        ImageError: several frames, or too many pixels or none. PIL's own errors pass.
    """
    image = PIL.Image.open(source, formats=_formats())
    check_pixels(*image.size, where, 2 if image.format in _BUFFERED else 1)
    if not all(image.size):
        raise ImageError(f"{where} is {image.width}x{image.height}, without a pixel; remove it")
    # The second picture of a phone's JPEG (MPO) is a preview, or the same from further right.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        # PIL counts the frames of a GIF or TIFF only by reading all of it.
        frames = vars(image).get("n_frames", "several")
        raise ImageError(f"{where} has {frames} frames; save the one to use as an image of its own")
    return image


@cache
def _formats() -> tuple[str, ...]:
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """List the file endings that are read as images, in lower case, with the dot."""
    formats = (*_formats(), "MPO")  # a phone's JPEG of several pictures
    return frozenset(suffix for suffix, name in PIL.Image.registered_extensions().items() if name in formats)


def convert(image: PIL.Image.Image, channels: int, where: str) -> PIL.Image.Image:
    """Convert an image of any mode to 8 bits, L (channels 1) or RGB (channels 3).

    Raises:
        ImageError: the image has no such form.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise ImageError(f"{where} has float values, whose range is not defined; save it with 8 or 16 bits")
    try:
        if image.mode == "I":
            low, high = image.getextrema()
            if low < 0 or high > 65535:
                raise ImageError(
                    f"{where} has values {low}..{high}, which do not fit 0..65535; save it with 8 or 16 bits"
                )
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
    except Exception as error:  # from a broken palette or transparency, or lack of memory
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
    """Return the error's first line, or that of its cause if `datasets` wrapped it without a reason."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
