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


def write_mnist_size(folder):
    """Writes 130 training and 12 test images of MNIST's size into a folder of two splits."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 130), ("test", 12)):
        (folder / split).mkdir(parents=True)
        for index in range(number):
            grey = generator.integers(0, 256, (28, 28), dtype=np.uint8)
            Image.fromarray(grey).save(folder / split / f"{index:03d}.png")
