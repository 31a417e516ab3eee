"""Say how many cores must decode images so that a GPU does not wait for them."""

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from arcvq.planning.step_work import H100
from arcvq.planning.textured_image import SIDES, as_jpeg, textured_image
from tokenizer.data.dataset import framed_pixels
from tokenizer.data.decoding import convert, decode_image
from tokenizer.data.facts import DatasetInfo
from tokenizer.data.framing import Framing
from tokenizer.data.subsets import evenly_spaced_images

# Images whose loading is timed, and the seconds after which that ends.
TIMED = 64
LONGEST = 1.0


def loading_lines(info: DatasetInfo, images_per_step: int, step_seconds: float) -> dict[str, str]:
    """Describe how fast a core of this machine loads images, and how many such cores one H100 needs.

    Args:
        info: the images, of which some are loaded now; where they are not here, made ones take their place.
        images_per_step: images of a step on one GPU.
        step_seconds: the estimated time of that step.
    """
    if info.images is None:
        rate, which = rate_of_made_images(info), f"made JPEGs, as {info.name} is not here"
    else:
        rate, which = rate_of(info.images.decode, evenly_spaced_images(info.images, TIMED)), "measured now"
    cores = max(1, math.ceil(images_per_step / step_seconds / rate))
    estimate = f"estimated: {images_per_step:,} images in {1e3 * step_seconds:.3g} ms, by operations and bytes"
    return {
        "loading": f"{rate:,.0f} images a second of a core: {which}",
        f"cores per {H100.name}": f"{cores:,}; {estimate}",
    }


def rate_of_made_images(info: DatasetInfo) -> float:
    """Measure the images a second of one core for made JPEGs, which are large enough for the framing."""
    least = max(info.framing.image_size, info.framing.resize_to or 0, SIDES[0])
    random = np.random.default_rng(0)
    made = [as_jpeg(textured_image(random, (least, least * SIDES[1] // SIDES[0]))) for _ in range(TIMED // 8)]
    framing = Framing(info.framing.image_size, info.framing.resize_to)

    def load(index: int) -> torch.Tensor:
        where = f"made image {index}"
        return framed_pixels(convert(decode_image(made[index], where), info.channels, where), where, framing)

    return rate_of(load, list(range(len(made))))


def rate_of(load: Callable[[int], object], indices: list[int]) -> float:
    """Measure the images a second of one core, by the processor's time; the first image is loaded before."""
    load(indices[0])
    began, loaded = time.process_time(), 0
    for index in indices:
        load(index)
        loaded += 1
        if time.process_time() - began > LONGEST:
            break
    return loaded / max(time.process_time() - began, 1e-9)
