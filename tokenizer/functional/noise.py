"""Noise for a batch of images, image by image: any split of the batch over processes and parts draws the same."""

from collections.abc import Callable

import torch
from torch import Tensor

# Between the seeds of two images; odd, so that no two of 2^63 places share a seed.
_STRIDE = 0x1E3779B97F4A7C15


class ImageNoise:
    """A stream of noise for each image of a batch.

    Args:
        images: how many, B.
        device: where the noise is made.
        seed: with the images' places in the whole batch it decides the noise; None: drawn from the global random state.
        first_image: the place of the first one.
    """

    def __init__(self, images: int, device: torch.device, seed: int | None = None, first_image: int = 0):
        if seed is None:
            seed = int(torch.randint(1 << 62, ()))
        seeds = ((seed + (first_image + index) * _STRIDE) % (1 << 63) for index in range(images))
        self._streams = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    @torch.compiler.disable
    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise of the shape (B, ...) and type of `like`."""
        return self._fill(like, torch.Tensor.normal_)

    @torch.compiler.disable
    def uniform(self, like: Tensor) -> Tensor:
        """Uniform noise in [0, 1) of the shape (B, ...) and type of `like`."""
        return self._fill(like, torch.Tensor.uniform_)

    @torch.compiler.disable
    def gumbel(self, like: Tensor) -> Tensor:
        """Standard Gumbel noise, -log(-log(uniform)), of the shape (B, ...) and type of `like`; it is finite."""
        least = torch.finfo(like.dtype).tiny
        # Not by `exponential_`, which a dry run's tensors do not have with a generator.
        uniform = self._fill(like, lambda noise, generator: noise.uniform_(least, 1, generator=generator))
        return uniform.log_().neg_().log_().neg_()

    def _fill(self, like: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        noise = torch.empty_like(like, requires_grad=False, memory_format=torch.contiguous_format)
        for of_image, stream in zip(noise, self._streams, strict=True):
            draw(of_image, generator=stream)
        return noise
