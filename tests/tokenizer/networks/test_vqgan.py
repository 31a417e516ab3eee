import json

import pytest
import torch
from torch.nn.functional import conv2d

from tokenizer import VQTokenizer
from tokenizer.networks.vqgan import VQGANDecoder, VQGANEncoder

F16 = (1, 1, 2, 2, 4)


OPTIONS = (
    *("channel_multipliers", "attention_sizes", "z_channels", "norm_groups"),
    *("encoder_attends", "decoder_hidden_channels"),
)


def make(**arguments):
    """A small tokenizer; None for an option of the network is its default."""
    small = {"network": "vqgan", "image_size": 16, "codebook_size": 24, "codebook_dim": 6, "hidden_channels": 32}
    options = {"channel_multipliers": (1, 2)} | {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    options = {name: value for name, value in options.items() if value is not None}
    return VQTokenizer(**(small | {"num_residual_layers": 1} | arguments), network_options=options).eval()


def images_for(model, count=2):
    return torch.rand(count, 3, model.config.image_size, model.config.image_size) * 2 - 1


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def attention_levels(network):
    """Which levels attend, from the images on, in the encoder and in the decoder."""
    encoder, decoder = network.encoder.network.down_blocks, network.decoder.network.up_blocks
    return [hasattr(block, "attentions") for block in encoder], [
        hasattr(block, "attentions") for block in reversed(decoder)
    ]


@pytest.mark.parametrize(
    ("multipliers", "encoder", "decoder", "side"),
    [(None, 27_453_072, 40_309_251, 32), (F16, 28_192_016, 41_343_875, 16)],
)
def test_parameters_of_the_published_size(multipliers, encoder, decoder, side):
    with torch.device("meta"):
        model = VQTokenizer(
            network="vqgan",
            image_size=256,
            codebook_size=1024,
            codebook_dim=16,
            network_options=multipliers and {"channel_multipliers": multipliers},
        )
    assert num_parameters(model.encoder.network) == encoder and num_parameters(model.decoder.network) == decoder
    around = num_parameters(model.encoder.quant_conv), num_parameters(model.decoder.post_quant_conv)
    assert around == (16 * 16 + 16,) * 2
    assert model.latent_shape == (16, side, side) and model.downsampling == 256 // side
    # By default the lowest level attends, the one of 32 and of 16.
    assert attention_levels(model) == ([False] * (len(model.encoder.network.down_blocks) - 1) + [True],) * 2


def test_a_biased_channel_alone_in_its_group_leaves_no_trace_and_among_others_does():
    torch.manual_seed(0)
    for groups, is_equal in ((None, True), (8, False)):
        model = make(norm_groups=groups)
        images = images_for(model)
        before = model.encode(images).latents
        model.encoder.network.down_blocks[0].resnets[0].conv1.bias.data[3] += 1
        assert torch.allclose(model.encode(images).latents, before, rtol=1e-4, atol=1e-5) == is_equal
        norms = [module for module in model.modules() if isinstance(module, torch.nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == {groups or 32} and len(norms) > 20


@pytest.mark.parametrize(
    ("sizes", "levels"), [(None, [0, 0, 1]), ((16, 4), [1, 0, 1]), ([8], [0, 1, 0]), ((), [0, 0, 0])]
)
def test_attention_is_at_the_sizes_named_and_always_in_the_middle(sizes, levels):
    with torch.device("meta"):
        model = make(channel_multipliers=(1, 1, 2), attention_sizes=sizes)
    assert attention_levels(model) == (list(map(bool, levels)),) * 2
    for network in (model.encoder.network, model.decoder.network):
        assert len(network.mid_block.attentions) == 1


@torch.no_grad()
def test_a_narrow_f8_network_in_both_memory_formats():
    model = make(image_size=64, channel_multipliers=None, num_residual_layers=2, codebook_dim=16)
    images = images_for(model)
    out = model(images)
    assert out.latents.shape == (2, 16, 8, 8) and out.codes.shape == (2, 8, 8)
    assert out.reconstruction.shape == images.shape and len(out.codes.unique()) > 1
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert last.reconstruction.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last.latents, out.latents, rtol=1e-4, atol=1e-5)
    assert torch.equal(last.codes, out.codes)
    torch.testing.assert_close(last.reconstruction, out.reconstruction, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_encoder_can_do_without_attention_and_the_decoder_be_of_another_width():
    whole, halves = make(hidden_channels=64), make(hidden_channels=64, encoder_attends=False)
    attention = {name for name, _ in whole.encoder.named_parameters() if ".attentions." in name}
    names = {name for name, _ in whole.encoder.named_parameters()}
    assert attention and {name for name, _ in halves.encoder.named_parameters()} == names - attention
    assert attention_levels(halves) == ([False, False], [False, True])

    narrow, slim = make(hidden_channels=64, decoder_hidden_channels=32), make(hidden_channels=32)
    assert num_parameters(narrow.encoder) == num_parameters(whole.encoder)
    assert num_parameters(narrow.decoder) == num_parameters(slim.decoder)
    images = images_for(narrow)
    assert narrow(images).reconstruction.shape == images.shape


def test_images_of_another_size_keep_the_downsampling():
    model = make(channel_multipliers=(1, 1, 2))
    out = model(torch.randn(1, 3, 24, 8))
    assert out.codes.shape == (1, 6, 2) and out.reconstruction.shape == (1, 3, 24, 8)
    with pytest.raises(ValueError, match="multiples of 4"):
        model(torch.randn(1, 3, 24, 10))


@torch.no_grad()
def test_the_channels_around_the_quantizer_may_be_of_another_number_than_its_codes():
    model = make(z_channels=10)
    latents = model.encode(images_for(model)).latents
    assert model.encoder.network.conv_out.out_channels == model.decoder.network.conv_in.in_channels == 10
    assert latents.shape == (2, 6, 8, 8) and model.decode(latents).sample.shape == (2, 3, 16, 16)


def test_gradient_checkpointing_gives_the_same_gradients_and_computes_twice():
    model = make(channel_multipliers=(1, 1, 2)).train()
    images = images_for(model)
    passes = []
    for network in (model.encoder.network.down_blocks[0], model.decoder.network.up_blocks[0]):
        network.register_forward_pre_hook(lambda *_: passes.append(1))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        passes.clear()
        out = model(images)
        ((out.reconstruction - images).square().mean() + sum(out.losses.values())).backward()
        assert len(passes) == (4 if checkpointing else 2)
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(gradient is not None for gradient in gradients[-1])
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_small_network_says_that_it_has_no_gradient_checkpointing():
    with pytest.raises(ValueError, match="network 'conv' has no gradient checkpointing"):
        VQTokenizer(hidden_channels=8).enable_gradient_checkpointing()


def test_the_last_layer_is_the_one_that_makes_the_images():
    model = make()
    hidden = []
    layer = model.decoder.last_layer
    layer.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    images = model.decoder(torch.randn(1, 6, 8, 8))
    assert torch.equal(conv2d(hidden[0], layer.weight, layer.bias, padding=1), images)


def test_under_autocast_the_networks_are_bfloat16_and_the_quantizer_float32():
    model = make().train()
    images = images_for(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images)
    assert out.latents.dtype == out.reconstruction.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in out.losses.values())
    assert torch.equal(out.codes, model.bottleneck.encode(out.latents.float()))
    exact = model(images)
    assert (out.latents - exact.latents).norm() < 0.05 * exact.latents.norm()


@torch.no_grad()
def test_save_and_load_is_bit_for_bit(tmp_path):
    model = make(attention_sizes=(16,), z_channels=10)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["network_options"] == {"channel_multipliers": [1, 2], "attention_sizes": [16], "z_channels": 10}
    loaded = VQTokenizer.from_pretrained(tmp_path)
    saved, restored = model.state_dict(), loaded.state_dict()
    assert saved.keys() == restored.keys() and all(torch.equal(restored[key], saved[key]) for key in saved)
    assert loaded.downsampling == 2 and attention_levels(loaded) == ([True, False],) * 2
    half = VQTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.codebook.dtype == torch.float32
    images = images_for(model)
    torch.testing.assert_close(loaded(images).reconstruction, model(images).reconstruction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "conv"}, "'conv' has no option 'channel_multipliers'; it has residual_channels, strided_layers"),
        ({"hidden_channels": 48}, "multiple of norm_groups, .* got 48 and 32"),
        ({"decoder_hidden_channels": 48}, "decoder_hidden_channels .* multiple of norm_groups, .* got 48 and 32"),
        ({"hidden_channels": 0}, "multiple of norm_groups, .* got 0 and 32"),
        ({"norm_groups": 0}, "multiple of norm_groups, .* got 32 and 0"),
        (
            {"attention_sizes": (8, 32)},
            "attention_sizes holds 32, .* at image_size 16 .* the feature maps are 16, 8 high",
        ),
        ({"channel_multipliers": ()}, r"channel_multipliers must be .*, got \[\]"),
        ({"channel_multipliers": (1, 0)}, r"channel_multipliers must be .*, got \[1, 0\]"),
        ({"num_residual_layers": 0}, "num_residual_layers .* at least 1, got 3, 0 and 6"),
        ({"z_channels": 0}, "z_channels .* at least 1"),
        ({"image_size": 30, "channel_multipliers": (1, 1, 1)}, "multiple of 4, got 30"),
    ],
)
def test_a_size_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_networks_lie_where_others_look_for_them():
    model = make()
    assert isinstance(model.encoder, VQGANEncoder) and isinstance(model.decoder, VQGANDecoder)
    images = images_for(model)
    out = model(images)
    torch.testing.assert_close(model.encoder(images), out.latents)
    torch.testing.assert_close(model.decoder(model.quantize(out.latents).quantized), out.reconstruction)
