import pytest
import torch
from torch.nn.functional import conv2d, conv_transpose2d, relu

from tokenizer.networks.base import NetworkSizes
from tokenizer.networks.conv import ConvDecoder, ConvEncoder, ConvSizes, ResidualLayer, make_conv


def apply(convolution, values, **options):
    return conv2d(values, convolution.weight, convolution.bias, **options)


def residual(layer, values):
    values = relu(values)
    return values + apply(layer.conv2, relu(apply(layer.conv1, values, padding=1)))


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def conv_size(inputs, outputs, kernel):
    return inputs * outputs * kernel**2 + outputs


def residual_size(hidden, inner, layers):
    return layers * (conv_size(hidden, inner, 3) + conv_size(inner, hidden, 1))


def test_the_skip_branch_carries_the_rectified_input():
    layer = ResidualLayer(4, 3)
    values = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(values), residual(layer, values))
    with torch.no_grad():
        layer.conv2.weight.zero_()
        layer.conv2.bias.zero_()
        assert torch.equal(layer(values), relu(values))


def test_the_encoder_is_the_papers_layer_by_layer():
    encoder = ConvEncoder(ConvSizes(3, 5, 7, 8, 4, 2, strided_layers=2))
    images = torch.randn(2, 3, 16, 12)
    hidden = relu(apply(encoder.conv_in, images, stride=2, padding=1))
    hidden = relu(apply(encoder.conv_down, hidden, stride=2, padding=1))
    hidden = apply(encoder.conv_mid, hidden, padding=1)
    for layer in encoder.residual:
        hidden = residual(layer, hidden)
    expected = apply(encoder.conv_out, relu(hidden))
    found = encoder(images)
    assert found.shape == (2, 5, 4, 3)
    torch.testing.assert_close(found, expected)


def test_the_decoder_is_the_papers_layer_by_layer():
    decoder = ConvDecoder(ConvSizes(3, 7, 5, 8, 4, 2, strided_layers=2))
    quantized = torch.randn(2, 5, 4, 3)
    hidden = apply(decoder.conv_in, quantized, padding=1)
    for layer in decoder.residual:
        hidden = residual(layer, hidden)
    hidden = relu(conv_transpose2d(relu(hidden), decoder.conv_up.weight, decoder.conv_up.bias, stride=2, padding=1))
    expected = conv_transpose2d(hidden, decoder.conv_out.weight, decoder.conv_out.bias, stride=2, padding=1)
    found = decoder(quantized)
    assert found.shape == (2, 3, 16, 12)
    torch.testing.assert_close(found, expected)
    assert decoder.last_layer is decoder.conv_out


@pytest.mark.parametrize("channels", [1, 3])
def test_parameters_of_the_published_size(channels):
    layers = residual_size(128, 32, 2)
    encoder = conv_size(channels, 64, 4) + conv_size(64, 128, 4) + conv_size(128, 128, 3) + conv_size(128, 64, 1)
    decoder = conv_size(64, 128, 3) + conv_size(128, 64, 4) + conv_size(64, channels, 4)
    make_encoder, make_decoder = make_conv(NetworkSizes(channels, 32, 64, 64, 128, 2))
    assert num_parameters(make_encoder()) == encoder + layers
    assert num_parameters(make_decoder()) == decoder + layers


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_the_number_of_residual_layers(layers):
    def sizes(layers):
        return ConvSizes(1, 4, 4, 8, 6, layers, strided_layers=2)

    widest = num_parameters(ConvEncoder(sizes(layers))) - num_parameters(ConvEncoder(sizes(0)))
    assert widest == residual_size(8, 6, layers)
    assert ConvDecoder(sizes(layers))(torch.randn(1, 4, 2, 2)).shape == (1, 1, 8, 8)


def test_one_strided_layer_halves_the_sides():
    sizes = ConvSizes(3, 5, 7, 8, 4, 2, strided_layers=1)
    assert sizes.downsampling == 2
    assert ConvEncoder(sizes)(torch.randn(2, 3, 10, 6)).shape == (2, 5, 5, 3)
    assert ConvDecoder(sizes)(torch.randn(2, 7, 5, 3)).shape == (2, 3, 10, 6)


@pytest.mark.parametrize("layers", [0, 3])
def test_another_number_of_strided_layers_is_refused(layers):
    with pytest.raises(ValueError, match=f"strided_layers of network 'conv' is 1 or 2, got {layers}"):
        ConvSizes(3, 5, 7, 8, 4, 2, strided_layers=layers)
