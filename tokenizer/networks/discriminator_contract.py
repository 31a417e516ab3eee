"""The contract of a discriminator: images => logits, high for real images and low for reconstructions."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Discriminator(nn.Module, ABC):
    """Classify images as real or reconstructed, in float32, also under autocast.

    The logits have two derivatives, which R1 needs. A subclass keeps repeated blocks in an nn.Sequential: those of an
    nn.ModuleList would be compiled one by one (`compile_in_place`), and what is compiled has one derivative.

    Attributes:
        anchors: (2,), running means of the logits of real and of reconstructed images, for `lecam_penalty`.
    """

    anchors: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("anchors", torch.zeros(2))

    @abstractmethod
    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images of a size that it does not take."""

    def check_batch(self, images: int) -> None:
        """Raise ValueError for a number of images that it does not take in one batch."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, 1, h, w) of float32 images (B, C, H, W)."""

    def forward(self, *batches: Tensor) -> list[Tensor]:
        """Return the logits (B, 1, h, w), float32, of each batch of images (B, C, H, W) in [-1, 1].

        No batch has an influence on the logits of another.

        Raises:
            ValueError: the images are of another size, or number, than the discriminator takes.
        """
        for images in batches:
            self.check_size(*images.shape[-2:])
            self.check_batch(len(images))
        with torch.autocast(batches[0].device.type, enabled=False):
            return [self.logits(images.float()) for images in batches]
