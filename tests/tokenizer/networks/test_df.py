import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, max_pool2d

from tokenizer import VQTokenizer
from tokenizer.networks import NetworkSizes, make_network
from tokenizer.networks.masked import MaskedAttention, MaskedConv2d, MaskedGroupNorm

SIZES = NetworkSizes(
    in_channels=3, image_size=16, encoder_channels=5, decoder_channels=5, hidden_channels=32, num_residual_layers=1
)
OPTIONS = {"channel_multipliers": (1, 2)}


def encoder_of(name):
    torch.manual_seed(0)
    options = OPTIONS | ({"attention_sizes": ()} if name == "vqgan" else {})
    return make_network(name, SIZES, options).make_encoder().double()


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def features_and_mask(channels, side=6):
    """Random features, and a mask with a block of ones that differs from image to image."""
    mask = torch.zeros(2, 1, side, side, dtype=torch.float64)
    mask[0, 0, 1:4, 2:5] = 1
    mask[1, 0, :2] = 1
    return torch.randn(2, channels, side, side, dtype=torch.float64), mask


def with_random_weights(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    return module


def test_parameters_of_the_published_size():
    with torch.device("meta"):
        model = VQTokenizer(
            network="df", image_size=256, quantizer="vq", codebook_size=8192, codebook_dim=256, num_residual_layers=2
        )
    assert num_parameters(model.encoder.network) == 24_242_432
    assert num_parameters(model.decoder.network) == 22_028_803
    assert num_parameters(model) == 48_499_971


class UnbiasedGroupNorm(nn.GroupNorm):
    """A group norm written with the unbiased variance of PyTorch."""

    def forward(self, features):
        groups = features.unflatten(1, (self.num_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, keepdim=True, correction=1)
        shape = (-1, *[1] * (features.ndim - 2))
        normalised = ((groups - mean) / (variance + self.eps).sqrt()).view_as(features)
        return normalised * self.weight.view(shape) + self.bias.view(shape)


@torch.no_grad()
def test_without_a_mask_it_is_the_encoder_of_vqgan_with_unbiased_variances():
    vqgan, df = encoder_of("vqgan"), encoder_of("df")
    df.load_state_dict(vqgan.state_dict())
    for part in vqgan.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = UnbiasedGroupNorm
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(df(images), vqgan(images))


@torch.no_grad()
def test_no_mask_is_a_mask_of_ones_and_a_mask_of_zeros_differs_by_the_epsilon_alone():
    df, images = encoder_of("df"), torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    expected = df(images)
    torch.testing.assert_close(df(images, torch.ones_like(images[:, :1])), expected)
    torch.testing.assert_close(df(images, torch.zeros_like(images[:, :1])), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_encoded_at_intact_places_does_not_depend_on_defective_pixels():
    df = encoder_of("df")
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.float64)
    mask[0, 0, 3:8, 5:9] = 1
    mask[1, 0, :, 13:] = 1
    other = torch.where(mask > 0, torch.randn_like(images), images)
    intact = (max_pool2d(mask, 2) == 0).expand(-1, 5, -1, -1)
    first, second, whole = df(images, mask), df(other, mask), df(images)
    torch.testing.assert_close(first[intact], second[intact], rtol=1e-10, atol=1e-12)
    assert (first[~intact] - second[~intact]).abs().min() > 1e-6
    assert (first[intact] - whole[intact]).abs().min() > 1e-9  # the mask is not without effect there


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2])
def test_the_convolution_is_that_of_all_inputs_or_of_intact_ones(stride):
    convolution = with_random_weights(MaskedConv2d(4, 3, 3, stride=stride, padding=1).double())
    features, mask = features_and_mask(4)
    outer = max_pool2d(mask, 2) if stride == 2 else mask
    found = convolution(features, mask, outer)
    for defective, given in ((1, features), (0, torch.where(mask > 0, 0, features))):
        expected = conv2d(given, convolution.weight, convolution.bias, stride=stride, padding=1)
        here = (outer == defective).expand_as(expected)
        torch.testing.assert_close(found[here], expected[here])


@torch.no_grad()
def test_the_norm_takes_mean_and_variance_of_all_values_or_of_the_intact_ones():
    norm = with_random_weights(MaskedGroupNorm(64).double())
    features, mask = features_and_mask(64)
    found = norm(features, mask)
    for image, group in itertools.product(range(2), range(32)):
        values = features[image, 2 * group : 2 * group + 2]
        intact = values[:, mask[image, 0] == 0]
        for channel in (2 * group, 2 * group + 1):
            for defective, seen in ((1, values), (0, intact)):
                here = mask[image, 0] == defective
                expected = (features[image, channel] - seen.mean()) / (seen.var() + 1e-6).sqrt()
                expected = expected * norm.weight[channel] + norm.bias[channel]
                torch.testing.assert_close(found[image, channel][here], expected[here], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("intact", [0, 1, 2])
def test_the_norm_is_finite_with_few_intact_values(intact):
    norm, features = MaskedGroupNorm(32), torch.randn(1, 32, 3, 3, requires_grad=True)
    mask = torch.ones(1, 1, 9)
    mask[..., :intact] = 0
    found = norm(features, mask.view(1, 1, 3, 3))
    found.square().sum().backward()
    assert found.isfinite().all() and features.grad.isfinite().all()


@torch.no_grad()
def test_an_intact_query_attends_to_intact_keys_alone_and_a_defective_one_to_all():
    attention = with_random_weights(MaskedAttention(32).double())
    features, mask = features_and_mask(32, side=5)
    found = attention(features, mask)
    normalised = attention.group_norm(features, mask)
    for image in range(2):
        tokens, defective = normalised[image].flatten(1).T, mask[image].flatten() > 0
        queries, keys, values = (layer(tokens) for layer in (attention.to_q, attention.to_k, attention.to_v))
        for place in range(25):
            seen = torch.ones_like(defective) if defective[place] else ~defective
            weights = (keys[seen] @ queries[place] / 32**0.5).softmax(dim=0)
            expected = features[image].flatten(1)[:, place] + attention.to_out[0](weights @ values[seen])
            torch.testing.assert_close(found[image].flatten(1)[:, place], expected)


def test_the_decoder_has_the_encoder_s_widths_in_reverse():
    for layers in (1, 2, 3):
        model = VQTokenizer(
            network="df", image_size=16, hidden_channels=32, num_residual_layers=layers, network_options=OPTIONS
        )
        ways = []
        for half in (model.encoder.network.down_blocks, model.decoder.network.up_blocks):
            blocks = [resnet for block in half for resnet in block.resnets]
            ways.append([(block.conv1.in_channels, block.conv1.out_channels) for block in blocks])
        assert ways[1] == [pair[::-1] for pair in reversed(ways[0])] and len(ways[0]) == 2 * layers


def test_gradient_checkpointing_gives_the_same_gradients_and_computes_twice():
    torch.manual_seed(0)
    model = VQTokenizer(network="df", image_size=16, hidden_channels=32, network_options=OPTIONS)
    images, passes, gradients = torch.rand(2, 3, 16, 16) * 2 - 1, [], []
    for part in (model.encoder.network.down_blocks[0], model.decoder.network.up_blocks[0]):
        part.register_forward_pre_hook(lambda *_: passes.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        passes.clear()
        output = model(images)
        ((output.reconstruction - images).square().mean() + sum(output.losses.values())).backward()
        assert len(passes) == (4 if checkpointing else 2)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", [0, 48])
def test_a_width_without_32_groups_is_refused(width):
    with pytest.raises(ValueError, match=f"hidden_channels of network 'df' must be a multiple of 32, .* got {width}"):
        VQTokenizer(network="df", hidden_channels=width)
