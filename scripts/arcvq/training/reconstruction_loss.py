"""What a tokenizer's reconstructions are measured by in training: pixels, and the features of an ImageNet network."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from tokenizer.losses.lpips import LPIPS, PerceptualNet, WeightFiles
from tokenizer.losses.reconstruction import log_squared_error, mean_absolute_error, normalised_mse, squared_error


@dataclass(frozen=True)
class LossConfig:
    """The terms of the reconstruction loss; the quantizer's own, and the adversarial one, are added to it.

    Args:
        pixel: mse, the squared error, as the small networks take it; l1, the absolute error, as VQGAN does; or log_mse,
            the nats of an image under a normal distribution of the best variance, as the likelihood-based quantizers
            sq, vae and hyperspherical_vae take it.
        pixel_weight: of that.
        perceptual_weight: of LPIPS, which is not computed if it is 0.
        perceptual_net: the network of LPIPS.
    """

    pixel: Literal["mse", "l1", "log_mse"] = "mse"
    pixel_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_net: PerceptualNet = "vgg"

    def check(self) -> None:
        """Raises ValueError for a weight below 0, or without end."""
        for name in ("pixel_weight", "perceptual_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}")
            if getattr(self, name) == inf:
                raise ValueError(f"loss.{name} must be finite, got {getattr(self, name)}")


class ReconstructionLoss:
    """Images, reconstructions => the loss, a scalar, and its terms by name, not weighted; float32.

    Args:
        config: which terms.
        weights: where the weights of LPIPS's network are.
        image_size: side of the images.
        device: of the images.

    Attributes:
        pixel_variance: the squared error is divided by it.

    Raises:
        ValueError: weights that are not there, or images that are too small for LPIPS's network.
    """

    def __init__(self, config: LossConfig, weights: WeightFiles, image_size: int, device: torch.device):
        self._config = config
        self.pixel_variance = 1.0
        self._batch_error: Tensor | None = None
        self._lpips = None
        if config.perceptual_weight:
            self._lpips = LPIPS(config.perceptual_net, weights).to(device)
            self._lpips.check_size(image_size, image_size)

    @property
    def networks(self) -> dict[str, LPIPS]:
        """The frozen networks that it looks through, by name."""
        return {} if self._lpips is None else {self._lpips.name: self._lpips}

    def see(self, images: Sequence[Tensor], reconstructions: Sequence[Tensor], accelerator: Accelerator) -> None:
        """To be called by all processes with the parts of a batch, before each of them is measured."""
        if self._config.pixel == "log_mse":  # the logarithm is of the whole batch's error
            pairs = zip(images, reconstructions, strict=True)
            errors = torch.stack([squared_error(part, made.detach()) for part, made in pairs])
            self._batch_error = accelerator.reduce(errors.mean(), "mean")

    def __call__(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, C, H, W) in [-1, 1] on both sides."""
        if self._config.pixel == "l1":
            pixel = mean_absolute_error(images, reconstructions)
        elif self._config.pixel == "log_mse":
            pixel = log_squared_error(images, reconstructions, self._batch_error)
        else:
            pixel = normalised_mse(images, reconstructions, self.pixel_variance)
        loss, terms = self._config.pixel_weight * pixel, {"reconstruction": pixel}
        if self._lpips is not None:
            terms["perceptual"] = self._lpips(images.float(), reconstructions.float()).mean()
            loss = loss + self._config.perceptual_weight * terms["perceptual"]
        return loss, terms
