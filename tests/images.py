"""Images for the tests of pictures and report."""

import numpy as np
import torch
from PIL import Image


def noise(n, channels=3, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def pixels(picture):
    """A picture or its file as (C, H, W)."""
    array = np.asarray(picture if isinstance(picture, Image.Image) else Image.open(picture))
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
