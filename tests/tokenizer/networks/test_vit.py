import math

import pytest
import torch
from torch.nn.functional import layer_norm, linear

from tokenizer import VQTokenizer
from tokenizer.networks.vit import Block, TransformerSizes, grid_positions

SMALL = {"hidden_channels": 512, "num_residual_layers": 8}
BASE = {"hidden_channels": 768, "num_residual_layers": 12}
LARGE_DECODER = {"decoder_width": 1280, "decoder_depth": 32, "decoder_heads": 16}


def make(**arguments):
    """A small tokenizer of 16 px images, with patches of 4 px."""
    small = {"network": "vit", "image_size": 16, "codebook_size": 24, "codebook_dim": 6, "hidden_channels": 16}
    small |= {"num_residual_layers": 2, "network_options": {"patch_size": 4}}
    return VQTokenizer(**(small | arguments)).eval()


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("sizes", "options", "encoder", "decoder", "total"),
    [
        (SMALL, None, 25_306_624, 25_306_115, 50_908_195),
        (BASE, None, 85_176_576, 85_175_811, 170_664_483),
        (SMALL, LARGE_DECODER, 25_306_624, 587_860_483, 613_487_907),
    ],
    ids=["small", "base", "small and large"],
)
def test_parameters_of_the_published_sizes(sizes, options, encoder, decoder, total):
    """Encoder and decoder without the linear maps around the quantizer; the total has these and the table."""
    with torch.device("meta"):
        model = VQTokenizer(
            network="vit",
            quantizer="fc",
            image_size=256,
            codebook_size=8192,
            codebook_dim=32,
            network_options=options,
            **sizes,
        )
    assert num_parameters(model.encoder) - num_parameters(model.encoder.conv_out) == encoder
    assert num_parameters(model.decoder) - num_parameters(model.decoder.conv_in) == decoder
    assert num_parameters(model) == total
    assert model.code_shape == (32, 32)


def test_positions_written_out():
    """Compute sin r w, cos r w, sin c w, cos c w of row r, column c and each frequency w = 10,000^(-i / n)."""
    found = grid_positions(2, 3, 16)
    frequencies = [10_000 ** (-i / 4) for i in range(4)]
    expected = [
        [function(place * w) for place in (row, column) for function in (math.sin, math.cos) for w in frequencies]
        for row in range(2)
        for column in range(3)
    ]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_block_written_out():
    block = Block(TransformerSizes(width=8, depth=1, heads=2, ffn_width=12)).double()
    weights = {name: value.detach() for name, value in block.named_parameters()}
    tokens = torch.randn(1, 5, 8, dtype=torch.float64)

    def norm(hidden, name):
        return layer_norm(hidden, (8,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    query, key, value = (norm(tokens[0], "norm1") @ weights["to_qkv.weight"].T).split(2 * 64, dim=1)
    heads = []
    for of in (slice(0, 64), slice(64, 128)):
        scores = query[:, of] @ key[:, of].T / math.sqrt(64)
        heads.append(scores.softmax(1) @ value[:, of])
    expected = tokens[0] + linear(torch.cat(heads, 1), weights["to_out.weight"], weights["to_out.bias"])
    hidden = linear(norm(expected, "norm2"), weights["ffn.0.weight"], weights["ffn.0.bias"]).tanh()
    expected = expected + linear(hidden, weights["ffn.2.weight"], weights["ffn.2.bias"])
    torch.testing.assert_close(block(tokens)[0], expected)


def without_attention(network):
    """The same network, whose attention adds nothing."""
    for block in network.transformer.blocks:
        torch.nn.init.zeros_(block.to_out.weight)
    return network


@pytest.mark.parametrize("attends", [False, True])
@torch.no_grad()
def test_patches_meet_in_the_attention_alone(attends):
    model = make()
    encoder, decoder = model.encoder, model.decoder
    if not attends:
        encoder, decoder = without_attention(encoder), without_attention(decoder)
    images, latents = torch.randn(1, 3, 16, 16), torch.randn(1, 6, 4, 4)
    before = encoder(images), decoder(latents)
    images[..., 4:8, 8:12] += 1  # row 1, column 2
    latents[..., 1, 2] += 1
    tokens = (encoder(images) - before[0]).abs().amax(dim=(0, 1)) > 1e-6
    patches = (decoder(latents) - before[1]).abs().amax(dim=(0, 1)) > 1e-6
    alone = torch.zeros(4, 4, dtype=torch.bool)
    alone[1, 2] = True
    assert torch.equal(tokens, torch.ones(4, 4, dtype=torch.bool) if attends else alone)
    assert torch.equal(patches.unflatten(0, (4, 4)).unflatten(2, (4, 4)).any(dim=3).any(dim=1), tokens)


def permuted(grid, order):
    return grid.flatten(2)[..., order].unflatten(2, grid.shape[2:])


@pytest.mark.parametrize("has_positions", [False, True])
@torch.no_grad()
def test_without_positions_the_order_of_the_tokens_would_not_matter(monkeypatch, has_positions):
    if not has_positions:
        monkeypatch.setattr("tokenizer.networks.vit.grid_positions", lambda *_: torch.zeros(()))
    transformer = make().encoder.transformer
    grid, order = torch.randn(2, 16, 3, 2), torch.randperm(6)
    after = transformer(permuted(grid, order))
    assert torch.allclose(after, permuted(transformer(grid), order), atol=1e-5) is not has_positions


@torch.no_grad()
def test_images_of_another_size_and_the_positions_are_not_among_the_weights():
    model = make()
    out = model(torch.randn(1, 3, 24, 8))
    assert out.codes.shape == (1, 6, 2) and out.reconstruction.shape == (1, 3, 24, 8)
    assert {name for name, _ in model.encoder.named_buffers()} == set()
    others = make(image_size=32)
    others.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(others(images).reconstruction, model(images).reconstruction)


@torch.no_grad()
def test_a_patch_is_the_same_linear_map_everywhere():
    """The encoder's first layer on a patch cut out, and the decoder's last on one token."""
    model = make()
    images, hidden = torch.randn(1, 3, 16, 16), torch.randn(1, 16, 4, 4)
    first, last = model.encoder.from_patches, model.decoder.last_layer
    tokens, pixels = first(images), last(hidden)
    patch = images[..., 4:8, 12:16].flatten()
    torch.testing.assert_close(tokens[0, :, 1, 3], first.weight.flatten(1) @ patch + first.bias)
    made = (hidden[0, :, 1, 3] @ last.weight.flatten(1)).view(3, 4, 4) + last.bias[:, None, None]
    torch.testing.assert_close(pixels[0, :, 4:8, 12:16], made)


def test_initial_weights_are_those_of_linear_maps():
    """Uniform up to sqrt(6 / (inputs + outputs)), where a patch is a vector of 3 x 8 x 8 values; biases are 0."""
    model = make(hidden_channels=128, network_options=None)
    inner, outer = 128, 3 * 8 * 8
    for layer, total in (
        (model.encoder.from_patches, inner + outer),
        (model.decoder.to_patches, inner + outer),
        (model.encoder.transformer.blocks[0].to_qkv, 128 + 3 * 128),
        (model.decoder.transformer.blocks[1].ffn[2], 4 * 128 + 128),
    ):
        assert layer.weight.abs().max().item() == pytest.approx(math.sqrt(6 / total), rel=0.01)
        assert layer.bias is None or not layer.bias.any()


def test_gradient_checkpointing_gives_the_same_gradients_and_computes_twice():
    model = make().train()
    images, passes, gradients = torch.randn(2, 3, 16, 16), [], []
    for half in (model.encoder, model.decoder):
        for block in half.transformer.blocks:
            block.register_forward_pre_hook(lambda *_: passes.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        passes.clear()
        out = model(images)
        ((out.reconstruction - images).square().mean() + sum(out.losses.values())).backward()
        assert len(passes) == (8 if checkpointing else 4)
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(gradient is not None for gradient in gradients[-1])
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected)


def test_under_autocast_the_sum_of_the_blocks_is_float32():
    model = make()
    sums, images = [], torch.randn(2, 3, 16, 16)
    model.encoder.transformer.norm.register_forward_pre_hook(lambda module, inputs: sums.append(inputs[0].dtype))
    exact = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images)
    assert sums == [torch.float32] * 2 and out.latents.dtype == torch.bfloat16
    assert (out.latents - exact.latents).norm() < 0.05 * exact.latents.norm()


@torch.no_grad()
def test_weights_in_bfloat16(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    half, images = VQTokenizer.from_pretrained(tmp_path, dtype=torch.bfloat16), torch.randn(2, 3, 16, 16)
    latents = half.encode(images.bfloat16()).latents
    assert latents.dtype == half.decode(latents).sample.dtype == torch.bfloat16
    assert (latents - model.encode(images).latents).norm() < 0.05 * latents.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_channels": 18}, "hidden_channels of network 'vit' must be a multiple of 4, .* got 18"),
        ({"hidden_channels": 0}, "multiple of 4, .* got 0"),
        ({"num_residual_layers": 0}, "num_residual_layers, heads and ffn_width .* at least 1, got 0, 1, 64"),
        ({"num_residual_layers": 10**9}, "num_residual_layers must be at most"),
        ({"network_options": {"patch_size": 0}}, "in_channels and patch_size .* got 3 and 0"),
        ({"network_options": {"heads": 0}}, "at least 1, got 2, 0, 64"),
        ({"network_options": {"decoder_ffn_width": 0}}, "decoder_depth, heads and ffn_width .* got 2, 1, 0"),
        ({"network_options": {"decoder_width": 6}}, "decoder_width of network 'vit' .* got 6"),
        ({"network_options": {"patch_size": 5}}, "image_size must be a multiple of 5, got 16"),
    ],
)
def test_a_size_that_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
