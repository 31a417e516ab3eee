"""Images for the tests of pictures, report and metrics."""

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset


def noise(n, channels=3, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def pixels(picture):
    """A picture or its file as (C, H, W)."""
    array = np.asarray(picture if isinstance(picture, Image.Image) else Image.open(picture))
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


class Images(Dataset):
    """A map-style data set of the images of a tensor."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]
