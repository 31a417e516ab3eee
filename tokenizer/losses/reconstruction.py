"""Reconstruction losses: images (B, C, H, W), reconstruction (B, C, H, W) -> scalar, float32."""

import torch
from torch import Tensor

# An error of 0 has no logarithm, and a smaller one a gradient that float32 does not hold. Below this one, images are
# reproduced exactly to float32, and there is nothing to learn.
_SMALLEST_ERROR = 1e-12


def normalised_mse(images: Tensor, reconstruction: Tensor, pixel_variance: float) -> Tensor:
    """Mean squared error of images in [-1, 1], divided by the variance of the training set's pixels, float32.

    `pixel_variance` is that of pixels in [-1, 1], which is 4 var(x / 255) for pixels x in [0, 255]: the loss is the
    share of the variance that is not explained (1 for a constant at the mean).
    """
    return torch.mean((reconstruction.float() - images.float()) ** 2) / pixel_variance


def mean_absolute_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute error of images in [-1, 1], float32."""
    return torch.mean((reconstruction.float() - images.float()).abs())


def squared_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error of an image, summed over its pixels, mean over the images (B, C, H, W), float32."""
    return (reconstruction.float() - images.float()).square().sum(dim=(1, 2, 3)).mean()


def log_squared_error(images: Tensor, reconstruction: Tensor, batch_error: Tensor) -> Tensor:
    """P / 2 log(squared error) for images of P pixel values in nats, float32 (SQ-VAE, Takida et al. 2022, section 3.3).

    The negative logarithm of a normal density around the reconstruction, but for a constant, whose variance is the best
    one for the batch. `batch_error` is the `squared_error` of the whole batch, of which these images (B, C, H, W) may
    be a part: the value is the batch's, and the gradients of equal parts have the batch's for a mean.
    """
    whole = batch_error.clamp(min=_SMALLEST_ERROR)
    pixels = images[0].numel()
    own = squared_error(images, reconstruction) / whole
    return pixels / 2 * (whole.log() + own - own.detach())
