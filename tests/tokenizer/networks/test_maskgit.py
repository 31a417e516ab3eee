"""MaskGIT's network against the counts of the public model and the convolutions written out."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate

from tokenizer import VQTokenizer
from tokenizer.networks import NetworkSizes, make_network


def parts(hidden=32, layers=1, multipliers=(1, 2), encoder=5, decoder=6, channels=3, size=16):
    sizes = NetworkSizes(channels, size, encoder, decoder, hidden, layers)
    network = make_network("maskgit", sizes, {"channel_multipliers": multipliers})
    return network.make_encoder(), network.make_decoder()


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_model_has_the_counted_parameters():
    with torch.device("meta"):
        tokenizer = VQTokenizer(3, 256, network="maskgit", quantizer="vq", codebook_size=1024, codebook_dim=256)
    assert parameters(tokenizer.encoder) == 23_775_104
    assert parameters(tokenizer.decoder) == 30_478_339
    assert parameters(tokenizer) == 54_515_587


def swish_conv(norm, conv, features, padding=1):
    normalised = group_norm(features, 32, norm.weight, norm.bias, 1e-6)
    return conv2d(normalised * normalised.sigmoid(), conv.weight, conv.bias, padding=padding)


def block(module, features):
    hidden = swish_conv(module.norm2, module.conv2, swish_conv(module.norm1, module.conv1, features))
    if module.shortcut is None:
        return features + hidden
    return hidden + conv2d(hidden, module.shortcut.weight)


def randomised(module):
    """Norms start as the identity, which would hide an exchanged weight."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def test_the_encoder_written_out():
    encoder = randomised(parts()[0])
    images = torch.randn(2, 3, 16, 16)
    features = conv2d(images, encoder.conv_in.weight, padding=1)
    features = block(encoder.levels[0].blocks[0], features)
    features = block(encoder.levels[1].blocks[0], avg_pool2d(features, 2))
    features = block(encoder.middle.blocks[0], features)
    expected = swish_conv(encoder.norm_out, encoder.conv_out, features, padding=0)
    torch.testing.assert_close(encoder(images), expected)


def test_the_decoder_written_out():
    decoder = randomised(parts()[1])
    quantized = torch.randn(2, 6, 4, 4)
    features = conv2d(quantized, decoder.conv_in.weight, decoder.conv_in.bias, padding=1)
    features = block(decoder.middle.blocks[0], features)
    features = block(decoder.levels[0].blocks[0], features)
    up = decoder.upsamplers[0]
    features = conv2d(interpolate(features, scale_factor=2), up.weight, up.bias, padding=1)
    features = block(decoder.levels[1].blocks[0], features)
    torch.testing.assert_close(decoder(quantized), swish_conv(decoder.norm_out, decoder.conv_out, features))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden": 48}, "hidden_channels of network 'maskgit' must be a multiple of 32, .* got 48"),
        ({"layers": 0}, "num_residual_layers of network 'maskgit' must be at least 1, got 3 and 0"),
        ({"multipliers": (1, 0)}, r"channel_multipliers must be whole numbers from 1 on, .* got \[1, 0\]"),
    ],
)
def test_sizes_that_cannot_work_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        parts(**options)
