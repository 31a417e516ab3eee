import pytest
import torch
from torch.nn.functional import leaky_relu

from tokenizer.networks.discriminator import PatchDiscriminator


def pictures(n, size=32, channels=3):
    return 2 * torch.rand(n, channels, size, size) - 1


def shaken(discriminator):
    """The same with biases that are not 0, as after some training."""
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return discriminator


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_published_size_has_the_published_parameters(norm):
    """Of colour images. Of pix2pix's pairs of them, with 6 channels, the number is the often printed 2,768,705."""
    for channels, expected in ((3, 2_765_633), (6, 2_768_705)):
        discriminator = PatchDiscriminator(channels, norm=norm)
        assert sum(parameter.numel() for parameter in discriminator.parameters()) == expected


def test_initial_weights_are_drawn_as_published():
    weights = torch.cat([p.flatten() for p in PatchDiscriminator(3).parameters() if p.ndim == 4]).detach()
    assert weights.mean().abs() < 1e-4 and weights.std().item() == pytest.approx(0.02, rel=0.01)
    gains = PatchDiscriminator(3, norm="batch").layers[9].weight.detach()
    assert gains.mean().item() == pytest.approx(1, abs=0.005) and gains.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("layers", "size", "side"), [(1, 6, 1), (2, 16, 2), (3, 24, 1), (3, 32, 2), (3, 256, 30)])
def test_a_logit_for_each_patch(layers, size, side):
    discriminator = PatchDiscriminator(1, 2, layers)
    assert [logits.shape for logits in discriminator(pictures(2, size, 1), pictures(1, size, 1))] == [
        (2, 1, side, side),
        (1, 1, side, side),
    ]


def test_a_logit_sees_seventy_pixels():
    """The published classifier's patch. Without its norms, through which a logit sees the whole image."""
    discriminator = PatchDiscriminator(1, 2)
    layers = [layer for layer in discriminator.layers if not isinstance(layer, torch.nn.GroupNorm)]
    image = pictures(1, 256, 1).requires_grad_()
    logits = torch.nn.Sequential(*layers)(image)
    logits[0, 0, 15, 15].backward()
    seen = image.grad[0, 0] != 0
    assert int(seen.any(0).sum()) == int(seen.any(1).sum()) == 70


def test_the_function_written_out():
    discriminator = shaken(PatchDiscriminator(1, 4, 2)).double()
    weights = dict(discriminator.named_parameters())
    images = pictures(2, 16, 1)
    hidden = images.double()
    for conv, norm, stride in ((0, None, 2), (2, 3, 2), (5, 6, 1)):
        hidden = torch.conv2d(hidden, weights[f"layers.{conv}.weight"], weights.get(f"layers.{conv}.bias"), stride, 1)
        if norm:
            hidden = torch.group_norm(
                hidden, hidden.shape[1] // 2, weights[f"layers.{norm}.weight"], weights[f"layers.{norm}.bias"]
            )
        hidden = leaky_relu(hidden, 0.2)
    expected = torch.conv2d(hidden, weights["layers.8.weight"], weights["layers.8.bias"], 1, 1)
    assert expected.std() > 0.01
    torch.testing.assert_close(discriminator.float()(images)[0].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("norm", "alike"), [("group", True), ("batch", False)])
def test_an_images_logits_do_not_depend_on_its_batch_with_group_normalisation(norm, alike):
    discriminator = shaken(PatchDiscriminator(3, 8, norm=norm))
    images = pictures(4)
    images[2:] *= 0.1
    whole = discriminator(images)[0]
    halves = torch.cat(discriminator(*images.chunk(2)))
    assert torch.allclose(whole, halves, atol=1e-6) is alike
    assert whole.std() > 0.01


def test_float32_whatever_the_autocast():
    discriminator = PatchDiscriminator(3, 8)
    images = pictures(2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = discriminator(images)[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, discriminator(images.float())[0])


def test_no_images_smaller_than_a_patch():
    discriminator = PatchDiscriminator(1, 2, 3)
    for size in ((24, 23), (23, 24)):
        with pytest.raises(ValueError, match=rf"^images of {size[0]}x{size[1]} .* takes 24 pixels; lower adversarial"):
            discriminator(torch.zeros(1, 1, 24, 24), torch.zeros(1, 1, *size))
        with pytest.raises(ValueError, match="too small for the discriminator"):
            discriminator.check_size(*size)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"channels": 7}, "adversarial.channels must be even .* got 7 and 3"),
        ({"channels": 0}, "got 0 and 3"),
        ({"num_layers": 0}, "adversarial.layers at least 1, got 64 and 0"),
        ({"norm": "layer"}, "adversarial.norm is group or batch, got 'layer'"),
    ],
)
def test_sizes_that_cannot_work(arguments, text):
    with pytest.raises(ValueError, match=text):
        PatchDiscriminator(3, **arguments)
