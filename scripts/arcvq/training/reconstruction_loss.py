"""The reconstruction loss of a tokenizer: a loss on pixels, and LPIPS."""

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
        pixel: loss on pixels: mse, the squared error; l1, the absolute error, as in VQGAN; log_mse, the nats of an
            image under a normal distribution with the best variance, for the quantizers sq, vae, hyperspherical_vae.
        pixel_weight: weight of the loss on pixels.
        perceptual_weight: weight of LPIPS; 0: LPIPS is not computed.
        perceptual_net: network of LPIPS.
    """

    pixel: Literal["mse", "l1", "log_mse"] = "mse"
    pixel_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_net: PerceptualNet = "vgg"

    def check(self) -> None:
        """Raise ValueError for a weight that is negative or infinite."""
        for name in ("pixel_weight", "perceptual_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}")
            if getattr(self, name) == inf:
                raise ValueError(f"loss.{name} must be finite, got {getattr(self, name)}")


class ReconstructionLoss:
    """Images, reconstructions => the loss, a float32 scalar, and its terms by name without their weights.

    Args:
        config: the terms.
        weights: the files of the weights of LPIPS's network.
        image_size: side of the images.
        device: device of the images.

    Attributes:
        pixel_variance: divides the squared error.

    Raises:
        ValueError: a file of weights is missing, or the images are too small for LPIPS's network.
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
        """The frozen networks, by name."""
        return {} if self._lpips is None else {self._lpips.name: self._lpips}

    def observe_batch(
        self, images: Sequence[Tensor], reconstructions: Sequence[Tensor], accelerator: Accelerator
    ) -> None:
        """Take in all parts of a batch before the loss of any; every process calls this."""
        if self._config.pixel == "log_mse":  # takes the logarithm of the whole batch's error
            pairs = zip(images, reconstructions, strict=True)
            errors = torch.stack([squared_error(part, made.detach()) for part, made in pairs])
            self._batch_error = accelerator.reduce(errors.mean(), "mean")

    def __call__(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a part; images and reconstructions are (B, C, H, W) in [-1, 1]."""
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
