"""Choose evenly spaced items: number of items -> indices."""

import torch
from torch import Tensor

from tokenizer.data.dataset import ImageDataset
from tokenizer.data.streaming.images import StreamedImages

# Images of one run in a subset of streamed images: whole runs are read block by block, single images are not.
STREAMED_RUN = 64


def evenly_spaced_images(images: ImageDataset | StreamedImages, count: int) -> list[int]:
    """Return the indices of `count` images evenly spaced over the data set, from 0 on; of all if it has fewer.

    For streamed images, take evenly spaced runs of `STREAMED_RUN` consecutive images: they are read in blocks.
    """
    length, count = len(images), min(len(images), count)
    run = STREAMED_RUN if isinstance(images, StreamedImages) else 1
    return [index // run * run * length // count + index % run for index in range(count)]


def evenly_spaced_indices(length: int, most: int) -> Tensor:
    """Return at most `most` evenly spaced indices of 0 to length - 1, both ends included; int64."""
    if length <= most:
        return torch.arange(length)
    return torch.linspace(0, length - 1, most, dtype=torch.float64).round().long()
