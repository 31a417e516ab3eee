"""Resizing, cropping, mirroring: against PIL, and by numbers that belong to an image and to nothing else."""

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from tokenizer.data.decoding import BICUBIC, DataError
from tokenizer.data.framing import Framing, mirrored, uniform_draws


def noise(width, height):
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_draws_belong_to_seed_epoch_and_index():
    draws = uniform_draws(3, 5, list(range(100)))
    assert draws.shape == (100, 3) and draws.dtype == np.float64 and draws.min() >= 0 and draws.max() < 1
    order = np.random.default_rng(0).permutation(100)
    assert np.array_equal(uniform_draws(3, 5, order), draws[order])
    assert np.array_equal(uniform_draws(3, 5, [17]), draws[17:18])
    others = [uniform_draws(*key, [0, 1, 2]) for key in ((3, 6), (4, 5), (5, 3), (0, 0), (-1, 0), (0, 1), (1, 0))]
    assert len({value for values in (draws[:3], *others) for value in values.ravel()}) == 8 * 9


def test_draws_are_splitmix64():
    def mix(state):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    assert mix(0) == 0xE220A8397B1DCDAF  # the published generator's first number from seed 0
    for seed, epoch, index in ((0, 0, 0), (7, 3, 2**40), (-1, 2, 9)):
        state = mix(mix(mix(seed % 2**64) ^ epoch) ^ index)
        expected = [(mix(state ^ draw) >> 11) / 2**53 for draw in range(3)]
        assert uniform_draws(seed, epoch, [index])[0].tolist() == expected


def test_draws_are_uniform_and_independent():
    draws = np.concatenate([uniform_draws(0, epoch, range(20_000)) for epoch in range(5)])
    values = np.column_stack([draws, np.roll(draws, 1, axis=0), np.roll(draws, 20_000, axis=0)])
    histogram = np.stack([np.histogram(column, 16, (0, 1))[0] for column in draws.T])
    assert np.abs(histogram - len(draws) / 16).max() < 5 * np.sqrt(len(draws) / 16)
    correlation = np.corrcoef(values.T) - np.eye(9)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(draws))
    assert mirrored(draws).mean() == pytest.approx(0.5, abs=0.01)


def test_a_flip_is_pils_and_undoes_itself():
    image, framing = noise(9, 9), Framing(9, flip=True)
    flipped, kept = (framing.apply(image, "", np.array([first, 0.3, 0.3])) for first in (0.49, 0.5))
    assert np.array_equal(np.asarray(flipped), np.asarray(PIL.ImageOps.mirror(image)))
    assert np.array_equal(np.asarray(framing.apply(flipped, "", np.zeros(3))), np.asarray(image))
    assert np.array_equal(np.asarray(kept), np.asarray(image))
    assert np.array_equal(np.asarray(framing.apply(image, "")), np.asarray(image))


@pytest.mark.parametrize(("size", "resize_to"), [((12, 9), 0), ((9, 12), 0), ((18, 40), None), ((30, 20), 9)])
def test_a_random_crop_is_a_window_of_the_uncropped_image_and_any_window(size, resize_to):
    image, framing = noise(*size), Framing(7, resize_to, random_crop=True, flip=True)
    uncropped = image
    if resize_to != 0:
        target = resize_to or 7
        uncropped = image.resize([round(side * target / min(size)) for side in size], BICUBIC)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(uncropped), (7, 7), axis=(0, 1))
    at = {windows[top, left].transpose(1, 2, 0).tobytes(): (top, left) for top, left in np.ndindex(windows.shape[:2])}
    draws = uniform_draws(0, 0, range(60 * len(at)))
    crops = [np.asarray(framing.apply(image, "", drawn)) for drawn in draws]
    found = [
        at[crop[:, ::-1].tobytes() if flip else crop.tobytes()]
        for crop, flip in zip(crops, mirrored(draws), strict=True)
    ]
    seen = np.bincount([top * windows.shape[1] + left for top, left in found], minlength=len(at))
    assert seen.min() > 20 and seen.max() < 120  # each window as often as the others
    centre = at[np.asarray(framing.apply(image, "")).tobytes()]
    assert centre == tuple((count - 1) // 2 for count in windows.shape[:2])


def test_only_a_size_to_resize_to_enlarges():
    image = noise(6, 8)
    enlarged = np.asarray(image.resize((9, 12), BICUBIC))[1:10, :9]
    assert np.array_equal(np.asarray(Framing(9, resize_to=9).apply(image, "")), enlarged)
    for resize_to in (None, 0):
        with pytest.raises(DataError, match=r"image 3 is 6x8, smaller than 9x9; .*data.resize_to to 9"):
            Framing(9, resize_to).apply(image, "image 3")
