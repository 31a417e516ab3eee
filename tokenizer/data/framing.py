"""Frame a decoded image: resize, crop and mirror it to a square, at random or in the centre."""

from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageOps

from tokenizer.data.decoding import BICUBIC, ImageError, check_pixels

# Longest side that is resized: PIL's table of weights takes some 40 bytes per pixel of the side.
LONGEST_SIDE = 2**20

_DRAWS = 3  # random numbers per image: mirrored or not, left and top of the crop


def uniform_draws(seed: int, epoch: int, indices: np.ndarray | list[int]) -> np.ndarray:
    """Draw float64 (n, 3) in [0, 1) for n images, as a function of seed, epoch and each image's index alone.

    A hash (splitmix64 of each number in turn; Steele et al. 2014) instead of a generator, because the images of a batch
    come in any order, from any process; 1,024 images take microseconds.
    """
    state = np.zeros((len(indices), _DRAWS), dtype=np.uint64)
    columns = np.asarray(indices, dtype=np.int64).astype(np.uint64)[:, None]
    for number in (np.full((1, 1), seed % 2**64, np.uint64), np.full((1, 1), epoch, np.uint64), columns):
        state = _mix(state ^ number)
    return (_mix(state ^ np.arange(_DRAWS, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def mirrored(draws: np.ndarray) -> np.ndarray:
    """Return which images are mirrored, bool (n,), by their draws (n, 3): half of them."""
    return draws[:, 0] < 0.5


@dataclass(frozen=True)
class Framing:
    """How an image of any shape becomes a square.

    Args:
        image_size: side of the square.
        resize_to: length of the short side before the crop. None: image_size, and smaller images are errors; a number:
            smaller images are enlarged; 0: no resizing.
        random_crop: whether the crop's position is drawn at random; else it is the centre.
        flip: whether half of the images are mirrored.
    """

    image_size: int
    resize_to: int | None = None
    random_crop: bool = False
    flip: bool = False

    @property
    def is_random(self) -> bool:
        """Whether training sees other images than evaluation."""
        return self.random_crop or self.flip

    def apply(self, image: PIL.Image.Image, where: str, draws: np.ndarray | None = None) -> PIL.Image.Image:
        """Frame an image to (image_size, image_size) with random numbers `draws` (3,).

        Without draws it is the centre, not mirrored.

        Raises:
            ImageError: the image, named by `where`, is smaller than the square, or too long to be resized.
        """
        image = self._resize(image, where)
        size = self.image_size
        free = image.width - size, image.height - size
        if self.random_crop and draws is not None:
            left, top = (int(draw * (room + 1)) for draw, room in zip(draws[1:], free, strict=True))
        else:
            left, top = (room // 2 for room in free)
        if any(free):
            image = image.crop((left, top, left + size, top + size))
        if self.flip and draws is not None and mirrored(draws[None]):
            image = PIL.ImageOps.mirror(image)
        return image

    def _resize(self, image: PIL.Image.Image, where: str) -> PIL.Image.Image:
        short, target = min(image.size), self.image_size if self.resize_to is None else self.resize_to
        if short < self.image_size and not self.resize_to:
            actual, wanted = f"{image.width}x{image.height}", f"{self.image_size}x{self.image_size}"
            remedy = f"remove it, lower data.image_size, or set data.resize_to to {self.image_size} to enlarge it"
            raise ImageError(f"{where} is {actual}, smaller than {wanted}; {remedy}")
        if target in (0, short):
            return image
        width, height = (round(side * target / short) for side in image.size)
        check_pixels(width, height, f"{where}, {image.width}x{image.height}, resized to a short side of {target},")
        if max(*image.size, width, height) > LONGEST_SIDE:
            problem = f"{where} is {image.width}x{image.height}, of which the long side is too long to be resized"
            raise ImageError(f"{problem}; remove it, or cut it into shorter ones")
        return image.resize((width, height), BICUBIC)
