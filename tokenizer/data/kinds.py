"""Decide the size and channels of all images of a data set, if the config leaves them open."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import PIL.Image

from tokenizer.data.bad_images import BadImages
from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import DataError, ImageError

# Above this number of images a sample decides for all: opening a million files takes minutes.
SAMPLE = 2048


@dataclass(frozen=True)
class ImageKind:
    """Size and channels with which all images of a data set are read.

    Attributes:
        image_size: side of the square.
        channels: 1 (grey) or 3 (RGB).
        notes: decisions taken from a part of the images, or despite differing images.
    """

    image_size: int
    channels: int
    notes: list[str] = field(default_factory=list)


def is_grey(mode: str) -> bool:
    """Tell whether images of a PIL mode count as grey."""
    return mode in ("1", "L") or mode.startswith("I")


def image_kind(
    number: int,
    decode: Callable[[int], tuple[PIL.Image.Image, str]],
    header: Callable[[int], tuple[str, tuple[int, int]]],
    sample: Sequence[int],
    config: DataConfig,
) -> ImageKind:
    """Decide size and channels: the config's, else the first image's side, and 1 channel if all images are grey.

    Args:
        number: number of training images.
        decode: returns an image by index, and its name for errors.
        header: returns an image's mode and size (width, height) by index.
        sample: indices of the images that decide the channels, all or some.
        config: config of the data set.

    Raises:
        DataError: the data set has no image, the first one cannot be decoded, or is not square while image_size is
            open.
    """
    if not number:
        raise DataError(f"data set {config.name!r} has no images to train on; add some, or correct data.name")
    first, where = BadImages(number).usable(0, decode) if config.on_bad_image == "skip" else decode(0)
    if config.image_size is None and first.width != first.height:
        raise DataError(f"{where} is {first.width}x{first.height}, not square; set data.image_size to the side to use")
    image_size = config.image_size or first.width
    if config.channels is not None and config.image_size is not None:
        return ImageKind(image_size, config.channels)
    grey, sizes = [], set()
    for index in sample:
        with suppress(ImageError):  # an unreadable image raises when it is read
            mode, size = header(index)
            grey.append(is_grey(mode))
            sizes.add(size)
    notes = []
    if config.channels is None and any(grey) and not all(grey):
        notes.append(f"{sum(grey)} of {len(grey)} images grey, read as RGB")
    if config.channels is None and len(sample) < number:
        notes.append(f"channels by {len(sample)} of {number} images")
    if config.image_size is None and len(sizes) > 1:
        sides = sorted(min(size) for size in sizes)
        notes.append(f"side of the first image, others have {sides[0]} to {sides[-1]}; see data.image_size")
    return ImageKind(image_size, config.channels or (1 if all(grey) and is_grey(first.mode) else 3), notes)
