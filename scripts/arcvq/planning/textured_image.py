"""Images that stand in for photographs where time is measured: made from a seed, with details of all sizes."""

import io

import numpy as np
import PIL.Image

QUALITY = 92  # of the JPEGs
SIDES = (300, 500)


def textured_image(random: np.random.Generator, sides: tuple[int, int] = SIDES) -> PIL.Image.Image:
    """Make an RGB image whose width and height are drawn from sides[0]..sides[1]."""
    width, height = (int(side) for side in random.integers(sides[0], sides[1] + 1, 2))
    values = np.full((height, width, 3), 128.0)
    for cells in (3, 8, 20, 50, 120, 300):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC)
        values += (np.asarray(layer, dtype=np.float64) - 128) * (3 / cells) ** 0.5
    return PIL.Image.fromarray(values.clip(0, 255).astype(np.uint8))


def as_jpeg(image: PIL.Image.Image) -> bytes:
    """Encode an image as JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
