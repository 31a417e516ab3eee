"""Reconstruction losses: images (B, C, H, W), reconstruction (B, C, H, W) -> scalar, float32."""

import torch
from torch import Tensor

# Lower bound of the squared error: 0 has no logarithm, and for tiny errors the gradient overflows float32. Below this
# bound images are reproduced exactly in float32, so nothing is left to learn.
_SMALLEST_ERROR = 1e-12


def normalised_mse(images: Tensor, reconstruction: Tensor, pixel_variance: float) -> Tensor:
    """Compute the mean squared error of images in [-1, 1], divided by the variance of the training set's pixels.

    `pixel_variance` is the variance of pixels in [-1, 1], which is 4 var(x / 255) for pixels x in [0, 255]. The loss is
    the share of the variance that is not explained: 1 for a constant image at the mean.
    """
    return torch.mean((reconstruction.float() - images.float()) ** 2) / pixel_variance


def mean_absolute_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Compute the mean absolute error of images in [-1, 1]."""
    return torch.mean((reconstruction.float() - images.float()).abs())


def squared_error(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Compute the squared error of images (B, C, H, W), summed over pixels and averaged over images."""
    return (reconstruction.float() - images.float()).square().sum(dim=(1, 2, 3)).mean()


def log_squared_error(images: Tensor, reconstruction: Tensor, batch_error: Tensor) -> Tensor:
    """Compute P / 2 log(squared error) in nats for images of P pixel values (SQ-VAE, Takida et al. 2022, section 3.3).

    It is, up to a constant, the negative log-likelihood of a normal density around the reconstruction whose variance is
    the best one for the batch. `batch_error` is the `squared_error` of the whole batch, of which these images (B, C, H,
    W) may be a part: the value is that of the whole batch, and the gradients of equal parts average to the whole
    batch's gradient.
    """
    whole = batch_error.clamp(min=_SMALLEST_ERROR)
    pixels = images[0].numel()
    own = squared_error(images, reconstruction) / whole
    return pixels / 2 * (whole.log() + own - own.detach())
