from math import sqrt

import pytest
import torch
from accelerate.utils.other import has_repeated_blocks
from torch.nn.functional import conv2d, leaky_relu

from tokenizer.losses.adversarial import r1_penalty
from tokenizer.networks.stylegan2_discriminator import (
    EqualConv2d,
    EqualLinear,
    ResidualBlock,
    StyleGAN2Discriminator,
    blur,
    minibatch_deviation,
)


def pictures(n, size=16, channels=3, **options):
    return 2 * torch.rand(n, channels, size, size, **options) - 1


def make(size=16, max_channels=4, channels=3):
    """A small one with biases that are not 0, as after some training."""
    discriminator = StyleGAN2Discriminator(channels, size, max_channels)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return discriminator


def test_the_published_size_has_the_published_parameters():
    with torch.device("meta"):
        discriminator = StyleGAN2Discriminator(3, 256)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 28_864_129
    assert [block.conv2.out_channels for block in discriminator.blocks] == [256, 512, 512, 512, 512, 512]


@pytest.mark.parametrize("size", [16, 32, 128])
def test_one_logit_for_each_image(size):
    discriminator = make(size, channels=1)
    batches = [pictures(4, size, 1), pictures(2, size, 1)]
    assert [logits.shape for logits in discriminator(*batches)] == [(4, 1, 1, 1), (2, 1, 1, 1)]


def blurred(hidden, padding):
    """Sum features (B, C, h, w) over 4 x 4 values with the weights 1 3 3 1 of rows and of columns, over 64."""
    weights, (height, width) = (1, 3, 3, 1), hidden.shape[-2:]
    result = torch.zeros(*hidden.shape[:2], height + 2 * padding - 3, width + 2 * padding - 3, dtype=hidden.dtype)
    for row in range(result.shape[2]):
        for column in range(result.shape[3]):
            for i in range(4):
                for j in range(4):
                    at = row + i - padding, column + j - padding
                    if 0 <= at[0] < height and 0 <= at[1] < width:
                        result[..., row, column] += weights[i] * weights[j] / 64 * hidden[..., at[0], at[1]]
    return result


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2)])
def test_the_blur_written_out(padding, stride):
    hidden = torch.randn(2, 3, 6, 4)
    found = blur(hidden, make().kernel, padding, stride)
    torch.testing.assert_close(found, blurred(hidden, padding)[..., ::stride, ::stride])


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2)])
def test_the_gradients_of_the_blur_are_those_of_differences(padding, stride):
    kernel = torch.rand(4, 4, dtype=torch.float64)  # of no symmetry
    hidden = torch.randn(2, 3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda hidden: blur(hidden, kernel, padding, stride), hidden)
    assert torch.autograd.gradgradcheck(lambda hidden: blur(hidden, kernel, padding, stride) ** 2, hidden)


def test_a_block_written_out():
    block = ResidualBlock(2, 3).double()
    hidden = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    weights = {name: value.detach() for name, value in block.named_parameters()}
    torch.nn.init.normal_(block.conv1.bias)
    inner = conv2d(hidden, weights["conv1.weight"] / sqrt(18), weights["conv1.bias"], padding=1)
    inner = blurred(leaky_relu(inner, 0.2) * sqrt(2), padding=2)
    inner = conv2d(inner, weights["conv2.weight"] / sqrt(18), weights["conv2.bias"])[..., ::2, ::2]
    skip = conv2d(blurred(hidden, padding=1), weights["skip.weight"] / sqrt(2))[..., ::2, ::2]
    expected = (skip + leaky_relu(inner, 0.2) * sqrt(2)) / sqrt(2)
    torch.testing.assert_close(block(hidden, make().kernel.double()), expected)


@pytest.mark.parametrize(("images", "group"), [(8, 4), (4, 4), (3, 3), (1, 1)])
def test_the_minibatch_deviation_written_out(images, group):
    hidden = torch.randn(images, 5, 2, 3, dtype=torch.float64)
    found = minibatch_deviation(hidden)
    assert found.shape == (images, 1, 2, 3)
    for first in range(0, images, group):
        deviations = []
        for values in hidden[first : first + group].flatten(1).T.tolist():
            mean = sum(values) / group
            deviations.append(sqrt(sum((value - mean) ** 2 for value in values) / group + 1e-8))
        expected = torch.full((group, 1, 2, 3), sum(deviations) / len(deviations), dtype=torch.float64)
        torch.testing.assert_close(found[first : first + group], expected)


@torch.no_grad()
def test_a_logit_depends_on_the_group_of_its_image_and_on_no_other():
    discriminator, images = make(), pictures(8)
    images[4:] *= 0.1
    whole = discriminator(images)[0]
    torch.testing.assert_close(torch.cat(discriminator(*images.split(4))), whole)
    assert not torch.allclose(torch.cat(discriminator(*images.split(2))), whole, rtol=1e-3)


@pytest.mark.parametrize(
    ("layer", "inputs"), [(EqualConv2d(7, 400, 3), 63), (EqualLinear(63, 400), 63)], ids=["2", "1"]
)
def test_equalised_weights_are_drawn_with_variance_1_and_keep_that_of_features(layer, inputs):
    assert layer.weight.std().item() == pytest.approx(1, rel=0.05) and not layer.bias.any()
    patches = torch.randn(400, inputs)
    features = layer(patches.view(400, 7, 3, 3) if layer.weight.ndim == 4 else patches)
    assert features.std().item() == pytest.approx(1, rel=0.05)


def test_the_first_two_derivatives_are_those_of_differences():
    discriminator = make(channels=1).double()
    images = pictures(2, channels=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(discriminator.logits, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(discriminator.logits, images, fast_mode=True)
    (gradient,) = torch.autograd.grad(discriminator.logits(images).sum(), images, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), images)[0].abs().max() > 0  # that of the deviation


def test_the_gradient_of_r1_is_that_of_differences():
    discriminator = make(channels=1).double()
    images = pictures(4, channels=1, dtype=torch.float64)
    parameters = [parameter for name, parameter in discriminator.named_parameters() if name != "out.bias"]
    gradients = torch.autograd.grad(r1_penalty(discriminator.logits, images), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-6 * direction
            values.append(r1_penalty(discriminator.logits, images).item())
            with torch.no_grad():
                parameter -= sign * 1e-6 * direction
        slope = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-6)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients) > len(parameters) / 2


def test_float32_whatever_the_autocast():
    discriminator, images = make(), pictures(4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = discriminator(images)[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, discriminator(images.float())[0])


def test_it_is_compiled_as_a_whole_so_that_r1_can_go_around_it():
    """R1 calls `forward`, in which a block that is compiled for itself would have one derivative."""
    assert not has_repeated_blocks(make(64))


def test_the_kernel_of_the_blur_is_not_among_the_weights():
    assert "kernel" not in make().state_dict()


@pytest.mark.parametrize(
    ("size", "max_channels", "text"),
    [
        (24, 8, "power of two from 16 on, got 24; set data.image_size, or take adversarial.discriminator patch"),
        (8, 8, "power of two from 16 on, got 8"),
        (0, 8, "power of two from 16 on, got 0"),
        (256, 3, "max_channels must be at least 4 for images of 256 pixels, got 3"),
        (16, 0, "max_channels must be at least 1 for images of 16 pixels, got 0"),
    ],
)
def test_sizes_that_cannot_work(size, max_channels, text):
    with pytest.raises(ValueError, match=text):
        StyleGAN2Discriminator(3, size, max_channels)


def test_no_images_and_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="images of 32x16 do not fit the discriminator, which takes 16x16"):
        make()(torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 32, 16))
    with pytest.raises(ValueError, match="takes 4 images at a time, and 6 do not divide"):
        make()(pictures(6))
