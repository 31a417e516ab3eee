import pytest
import torch
from diffusers import VQModel
from diffusers.models.attention_processor import SpatialNorm
from torch.nn.functional import group_norm

from tokenizer import VQTokenizer

F16 = (1, 1, 2, 2, 4)


def make(network="movq", **options):
    """A small tokenizer of two levels, the lower one with attention."""
    torch.manual_seed(0)
    sizes = {"image_size": 16, "codebook_size": 24, "codebook_dim": 6, "hidden_channels": 32, "num_residual_layers": 1}
    return VQTokenizer(network=network, network_options={"channel_multipliers": (1, 2)} | options, **sizes).eval()


def images(count=2):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def spatial_norms(network):
    return {name: part for name, part in network.named_modules() if isinstance(part, SpatialNorm)}


@pytest.mark.parametrize(
    ("options", "layers", "codes", "dim", "encoder", "decoder", "total"),
    [
        ({}, 2, 16_384, 4, 27_397_764, 40_369_155, 67_832_495),
        ({}, 4, 16_384, 4, None, None, 101_614_255),
        ({"channel_multipliers": F16}, 2, 1024, 256, 29_298_176, 48_765_827, 78_457_731),
    ],
    ids=["f8", "f8 of four blocks", "f16"],
)
def test_parameters_of_the_published_sizes(options, layers, codes, dim, encoder, decoder, total):
    with torch.device("meta"):
        model = VQTokenizer(
            network="movq",
            image_size=256,
            quantizer="vq",
            codebook_size=codes,
            codebook_dim=dim,
            num_residual_layers=layers,
            network_options=options,
        )
    assert num_parameters(model) == total
    if encoder:
        assert num_parameters(model.encoder.network) == encoder
        assert num_parameters(model.decoder.network) == decoder


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"z_channels": 10}], ids=["z of D channels", "z of others"])
def test_every_norm_of_the_decoder_is_scaled_and_shifted_by_the_codes_that_it_is_given(options):
    """Written out with an upsampling by repetition and a matrix product over channels."""
    model, calls = make(**options), []
    norms = spatial_norms(model.decoder)
    for norm in norms.values():
        norm.register_forward_hook(lambda *call: calls.append(call))
    quantized = torch.randn(2, 6, 8, 8)
    model.decoder(quantized)
    assert len(calls) == len(norms)
    for norm, (features, *_), found in calls:
        times = features.shape[2] // 8
        q = quantized.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
        scale, shift = (
            torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], q) + conv.bias[:, None, None]
            for conv in (norm.conv_y, norm.conv_b)
        )
        normalised = group_norm(features, 32, norm.norm_layer.weight, norm.norm_layer.bias, 1e-6)
        torch.testing.assert_close(found, normalised * scale + shift)
    inside = {f"{name}.norm_layer" for name in norms}
    groups = {name for name, part in model.decoder.named_modules() if isinstance(part, torch.nn.GroupNorm)}
    assert groups == inside


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"z_channels": 10}], ids=["z of D channels", "z of others"])
def test_with_scale_one_and_shift_zero_it_is_vqgan(options):
    movq, vqgan = make(**options), make("vqgan", **options)
    for norm in spatial_norms(movq.decoder).values():
        norm.conv_y.bias.fill_(1)
        for value in (norm.conv_y.weight, norm.conv_b.weight, norm.conv_b.bias):
            value.zero_()
        features, quantized = torch.randn(2, norm.norm_layer.num_channels, 16, 16), torch.randn(2, 6, 8, 8)
        assert torch.equal(norm(features, quantized), norm.norm_layer(features))
    state = {
        # vqgan's attentions call the norm by another name
        name.replace(".norm_layer", "").replace("spatial_norm", "group_norm"): value
        for name, value in movq.state_dict().items()
        if ".conv_y." not in name and ".conv_b." not in name
    }
    vqgan.load_state_dict(state)
    expected, found = vqgan(images()), movq(images())
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)


@torch.no_grad()
def test_it_is_the_spatial_vq_model_of_diffusers_on_equal_weights():
    ours = make()
    theirs = VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=6,
        num_vq_embeddings=24,
        norm_type="spatial",
    )
    state = {name.replace(".network", ""): value for name, value in ours.state_dict().items()}
    state["quantize.embedding.weight"] = state.pop("bottleneck.codebook")
    for name in ("encoder.quant_conv", "decoder.post_quant_conv"):
        for part in ("weight", "bias"):
            state[f"{name.split('.')[1]}.{part}"] = state.pop(f"{name}.{part}")
    del state["bottleneck.step"]
    theirs.load_state_dict(state)
    latents = ours.encode(images()).latents
    torch.testing.assert_close(theirs.encode(images()).latents, latents)
    # arc, the default quantizer here, looks up by cosine: the decoders are compared on its rows.
    rows = ours.quantize(latents).quantized
    torch.testing.assert_close(theirs.decode(rows, force_not_quantize=True).sample, ours.decoder(rows))


def test_gradient_checkpointing_gives_the_same_gradients_and_computes_twice():
    model, passes, gradients = make().train(), [], []
    norm = model.decoder.network.up_blocks[0].resnets[0].norm1
    norm.register_forward_pre_hook(lambda *_: passes.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        passes.clear()
        output = model(images())
        ((output.reconstruction - images()).square().mean() + sum(output.losses.values())).backward()
        assert len(passes) == 1 + checkpointing
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert all(gradient is not None for gradient in gradients[-1])
    for found, expected in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_saved_and_loaded_it_decodes_the_same(tmp_path):
    model = make(z_channels=10)
    model.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded(images()).reconstruction, model(images()).reconstruction)


@pytest.mark.parametrize("width", [0, 48])
def test_a_width_without_32_groups_is_refused(width):
    with pytest.raises(ValueError, match=f"hidden_channels of network 'movq' must be a multiple of 32, .* got {width}"):
        VQTokenizer(network="movq", hidden_channels=width)
