"""The loader benchmark's peers: torchvision's and webdataset's own ways to load images."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

Batches = Iterable[torch.Tensor]


def _transforms(image_size: int) -> v2.Compose:
    """Resize bicubic and antialiased, crop the centre, and map to float32 in [-1, 1], as for our own data sets."""
    return v2.Compose(
        [
            v2.Resize(image_size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(image_size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def torchvision_files(folders: dict[str, Path], image_size: int, batch_size: int) -> Batches:
    """Load JPEG files by ImageFolder, which decodes with PIL."""
    images = ImageFolder(folders["files"] / "train", _transforms(image_size))
    return (batch for batch, _ in DataLoader(images, batch_size, shuffle=True, drop_last=True))


def torchvision_tensors(folders: dict[str, Path], image_size: int, batch_size: int) -> Batches:
    """Load JPEG files by ImageFolder and torchvision's decoder, and resize tensors."""

    def load(path: str) -> torch.Tensor:
        return decode_image(path, ImageReadMode.RGB)

    images = ImageFolder(folders["files"] / "train", _transforms(image_size), loader=load)
    return (batch for batch, _ in DataLoader(images, batch_size, shuffle=True, drop_last=True))


def webdataset_tar(folders: dict[str, Path], image_size: int, batch_size: int) -> Batches:
    """Load tar shards by webdataset, shuffled in its buffer, decoded with PIL."""
    import webdataset  # an optional install

    shards = sorted(str(file) for file in folders["tar"].glob("*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False, nodesplitter=webdataset.split_by_node)
    samples = samples.shuffle(1000).decode("pil").to_tuple("jpg", "cls").map_tuple(_transforms(image_size), int)
    return _full_batches(webdataset.WebLoader(samples.batched(batch_size), batch_size=None), batch_size)


def _full_batches(batches: Iterable, batch_size: int) -> Iterator[torch.Tensor]:
    return itertools.takewhile(lambda images: len(images) == batch_size, (images for images, _ in batches))


# Case => its package and its batches.
PEERS = {
    "torchvision": ("torchvision", torchvision_files),
    "torchvision tensors": ("torchvision", torchvision_tensors),
    "webdataset": ("webdataset", webdataset_tar),
}
