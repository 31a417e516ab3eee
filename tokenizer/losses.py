"""Losses on images, beside the quantizer's own: images, reconstruction -> scalar."""

import torch
from torch import Tensor


def normalised_mse(images: Tensor, reconstruction: Tensor, pixel_variance: float) -> Tensor:
    """Mean squared error of images in [-1, 1], divided by the variance of the training set's pixels, float32.

    `pixel_variance` is that of pixels in [-1, 1], which is 4 var(x / 255) for pixels x in [0, 255]: the loss is the
    share of the variance that is not explained (1 for a constant at the mean).
    """
    return torch.mean((reconstruction.float() - images.float()) ** 2) / pixel_variance
