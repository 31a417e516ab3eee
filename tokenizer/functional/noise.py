"""Noise with one random stream per image: splitting a batch over processes or micro-batches does not change it."""

from collections.abc import Callable

import torch
from torch import Tensor

# Difference of the seeds of two neighbouring images; odd, so that no two of 2^63 images share a seed.
_STRIDE = 0x1E3779B97F4A7C15


class ImageNoise:
    """One stream of noise for each image of a batch.

    Args:
        images: B, the number of images.
        device: device on which the noise is drawn.
        seed: determines the noise together with the images' indices in the global batch; None: draw a seed from the
            global random state.
        first_image: index of the first image in the global batch.
    """

    def __init__(self, images: int, device: torch.device, seed: int | None = None, first_image: int = 0):
        if seed is None:
            seed = int(torch.randint(1 << 62, ()))
        seeds = ((seed + (first_image + index) * _STRIDE) % (1 << 63) for index in range(images))
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    @torch.compiler.disable
    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal noise of the shape (B, ...) and dtype of `like`."""
        return self._fill(like, torch.Tensor.normal_)

    @torch.compiler.disable
    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniform noise in [0, 1) of the shape (B, ...) and dtype of `like`."""
        return self._fill(like, torch.Tensor.uniform_)

    @torch.compiler.disable
    def gumbel(self, like: Tensor) -> Tensor:
        """Draw standard Gumbel noise, -log(-log(uniform)), of the shape (B, ...) and dtype of `like`; always finite."""
        least = torch.finfo(like.dtype).tiny
        # `exponential_` would do, but fake tensors (a dry run) do not support it with a generator.
        uniform = self._fill(like, lambda noise, generator: noise.uniform_(least, 1, generator=generator))
        return uniform.log_().neg_().log_().neg_()

    def _fill(self, like: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        noise = torch.empty_like(like, requires_grad=False, memory_format=torch.contiguous_format)
        for image_noise, stream in zip(noise, self._streams, strict=True):
            draw(image_noise, generator=stream)
        return noise
