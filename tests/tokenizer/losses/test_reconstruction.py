import numpy as np
import pytest
import torch

from tokenizer.losses.reconstruction import mean_absolute_error, normalised_mse


def test_equals_mse_over_four_variances_of_the_raw_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 3, 8, 8))
    images, reconstruction = (torch.from_numpy(p / 127.5 - 1).float() for p in pixels)
    variance = np.var(pixels[0] / 255)
    expected = np.mean((images.double() - reconstruction.double()).numpy() ** 2) / (4 * variance)
    found = normalised_mse(images, reconstruction, images.double().var(correction=0).item())
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_is_zero_for_equal_images_and_one_for_the_mean():
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    variance = images.var(correction=0).item()
    assert normalised_mse(images, images, variance) == 0
    assert normalised_mse(images, images.mean().expand_as(images), variance).item() == pytest.approx(1, rel=1e-5)


def test_half_precision_is_summed_in_float32():
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    reconstruction = (images + 0.1 * torch.randn_like(images)).bfloat16()
    loss = normalised_mse(images.bfloat16(), reconstruction, 0.25)
    assert loss.dtype == torch.float32
    expected = ((images.bfloat16().double() - reconstruction.double()) ** 2).mean() / 0.25
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_absolute_error_is_summed_in_float32():
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    reconstruction = (images + 0.1 * torch.randn_like(images)).bfloat16()
    loss = mean_absolute_error(images.bfloat16(), reconstruction)
    expected = (images.bfloat16().double() - reconstruction.double()).abs().mean()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
