import json
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from places import ROOT
from quantizer_cases import small_tokenizer

import tokenizer
from tokenizer import VQTokenizer
from tokenizer.networks import NETWORKS


def make(**options):
    small = {"in_channels": 1, "image_size": 16, "codebook_size": 24, "codebook_dim": 6, "hidden_channels": 8}
    model = VQTokenizer(**(small | {"network_options": {"residual_channels": 4}} | options)).eval()
    # At random weights the biases decide, and all tokens get one code.
    for convolution in model.encoder.modules():
        if isinstance(convolution, torch.nn.Conv2d):
            torch.nn.init.zeros_(convolution.bias)
    return model


def images_for(model, count=3):
    return torch.rand(count, model.config.in_channels, 16, 16) * 2 - 1


def test_the_imported_package_is_this_projects():
    assert Path(tokenizer.__file__) == ROOT / "tokenizer" / "__init__.py"


@pytest.mark.parametrize("quantizer", ["arc", "cosine", "vq"])
def test_shapes_types_and_codes(quantizer):
    model = make(quantizer=quantizer, in_channels=3)
    images = images_for(model)
    out = model(images)
    assert model.latent_shape == (6, 4, 4)
    assert out.latents.shape == (3, 6, 4, 4) and out.reconstruction.shape == images.shape
    assert out.codes.shape == (3, 4, 4) and out.codes.dtype == torch.int64
    assert out.counts.sum() == 3 * 16
    assert model.codebook.shape == (24, 6) and model.codebook is model.bottleneck.codebook


@pytest.mark.parametrize("quantizer", ["arc", "cosine", "vq"])
@torch.no_grad()
def test_every_road_from_images_to_images_is_the_same(quantizer):
    model = make(quantizer=quantizer)
    images = images_for(model)
    out = model(images)
    latents, codes = model.encode(images).latents, model.encode_codes(images)
    quantized = model.quantize(latents)
    assert torch.equal(latents, out.latents) and torch.equal(latents, model.encoder(images))
    assert torch.equal(codes, out.codes) and torch.equal(codes, quantized.codes)
    assert len(codes.unique()) > 1
    for reconstruction in (model.decode(latents).sample, model.decode_codes(codes), model.decoder(quantized.quantized)):
        assert torch.equal(reconstruction, out.reconstruction)
    assert quantized.losses.keys() == out.losses.keys()
    assert all(torch.equal(quantized.losses[term], out.losses[term]) for term in out.losses)


@torch.no_grad()
def test_decode_quantises_first():
    model = make()
    codes = torch.randint(24, (2, 4, 4))
    latents = model.bottleneck.lookup(codes)
    # A cosine look-up: other lengths are the same codes, and the decoder gets the table's rows.
    assert torch.equal(model.decode(latents * 3).sample, model.decode_codes(codes))
    assert not torch.equal(model.decoder(latents * 3), model.decode_codes(codes))


def test_a_reconstruction_trains_the_encoder_through_the_codes():
    model = make().train()
    images = images_for(model)
    out = model(images)
    ((out.reconstruction - images) ** 2).mean().backward()
    assert all(parameter.grad.norm() > 0 for parameter in model.encoder.parameters())
    assert model.codebook.grad is None


def test_images_of_another_size_keep_the_downsampling():
    model = make()
    assert model(torch.randn(1, 1, 20, 8)).codes.shape == (1, 5, 2)


@pytest.mark.parametrize("quantizer", ["arc", "cosine", "vq"])
@torch.no_grad()
def test_save_and_load_is_bit_for_bit(quantizer, tmp_path):
    model = make(quantizer=quantizer, quantizer_options={"beta": 0.5})
    for _ in range(7):
        model.bottleneck.after_update(torch.zeros(1, 6, 2, 2), None)
    model.bottleneck.codebook.mul_(3)  # outside the ball: loading must not project
    model.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    saved, restored = model.state_dict(), loaded.state_dict()
    assert saved.keys() == restored.keys() and "bottleneck.step" in saved
    assert all(torch.equal(restored[key], saved[key]) and restored[key].dtype == saved[key].dtype for key in saved)
    assert loaded.bottleneck.step == 7
    assert loaded.bottleneck.beta == 0.5 and not loaded.training
    images = images_for(model)
    # Loaded weights lie elsewhere in memory, which may change a kernel's rounding.
    torch.testing.assert_close(loaded(images).reconstruction, model(images).reconstruction)


def test_the_config_is_the_constructors_arguments(tmp_path):
    model = make(quantizer_options={"top_k": 2, "ball": "fixed"})
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "VQTokenizer"
    assert config["quantizer"] == "arc" and config["quantizer_options"] == {"top_k": 2, "ball": "fixed"}
    assert VQTokenizer.from_config(config).bottleneck.top_k == 2


def test_a_folder_from_before_there_was_a_second_network_loads(tmp_path):
    model = VQTokenizer(in_channels=1, image_size=16, codebook_size=24, codebook_dim=6, hidden_channels=8)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["network_options"]
    assert config["network"] == "conv"
    # The inner width that was once written into every folder is what is now left out.
    (tmp_path / "config.json").write_text(json.dumps(config | {"residual_channels": 32}))
    loaded = VQTokenizer.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_a_folder_whose_weights_are_not_those_of_its_config_is_refused(tmp_path, change):
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_residual_layers"] += 1 if change == "missing" else -1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"residual.* {change}"):
        VQTokenizer.from_pretrained(tmp_path)


def test_the_loading_info_of_diffusers_is_still_given(tmp_path):
    make().save_pretrained(tmp_path)
    model, info = VQTokenizer.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, VQTokenizer) and not info["missing_keys"]


@torch.no_grad()
def test_code_written_for_diffusers_vq_model_works():
    model = make()
    images = images_for(model)
    (latents,) = model.encode(images, return_dict=False)
    assert torch.equal(latents, model.encode(images).latents)
    (sample,) = model.decode(latents, return_dict=False)
    assert torch.equal(sample, model.decode(latents).sample)


def test_decoding_passes_the_gradient_straight_through_to_the_latents():
    model = make()
    latents = torch.randn(2, 6, 4, 4, requires_grad=True)
    rows = model.bottleneck.lookup(model.bottleneck.encode(latents)).detach().requires_grad_()
    weights = torch.randn(2, 1, 16, 16)
    found, expected = (
        torch.autograd.grad((sample * weights).sum(), inputs)[0]
        for sample, inputs in ((model.decode(latents).sample, latents), (model.decoder(rows), rows))
    )
    assert expected.norm() > 0 and torch.equal(found, expected)


@pytest.mark.parametrize("method", ["encode", "encode_codes", "quantize", "decode", "decode_codes", "forward"])
@torch.no_grad()
def test_every_way_in_calls_the_hook_that_moves_the_model(method):
    calls = []

    class Recorder(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    model = make()
    inputs = {"quantize": torch.randn(1, 6, 4, 4), "decode": torch.randn(1, 6, 4, 4)}
    inputs["decode_codes"] = torch.zeros(1, 4, 4, dtype=torch.int64)
    add_hook_to_module(model, Recorder())
    getattr(model, method)(inputs.get(method, images_for(model)))
    assert calls and calls[0] is model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_half_precision_load_keeps_the_bottleneck_in_float32(dtype, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    half = VQTokenizer.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    assert half.codebook.dtype == torch.float32 and torch.equal(half.codebook, model.codebook)
    assert half.bottleneck.step.dtype == torch.int64
    networks = [*half.encoder.parameters(), *half.decoder.parameters()]
    assert all(parameter.dtype == dtype for parameter in networks)
    images = images_for(model).to(dtype)
    out = half(images)
    assert out.latents.dtype == out.reconstruction.dtype == dtype
    assert torch.equal(half.decode_codes(half.encode_codes(images)), out.reconstruction)
    # The half-precision codes are those of a float32 search over the same latents.
    assert torch.equal(out.codes, model.bottleneck.encode(out.latents.float()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "transformer"}, f"unknown network 'transformer'; there are {', '.join(NETWORKS)}"),
        ({"quantizer": "nothing"}, "unknown quantizer 'nothing'; there are arc, "),
        ({"image_size": 30}, "multiple of 4, got 30"),
        ({"image_size": 0}, "multiple of 4, got 0"),
        ({"in_channels": 0}, "at least 1"),
        ({"hidden_channels": 7}, "hidden_channels must be even"),
        ({"network_options": {"residual_channels": 0}}, "at least 1"),
        ({"codebook_size": 0}, "at least one row"),
        ({"codebook_dim": 0}, "at least one row"),
        ({"quantizer_options": {"gamma": 1}}, "no option 'gamma'"),
        ({"quantizer": "vq", "quantizer_options": {"top_k": 1}}, "no option 'top_k'"),
    ],
)
def test_a_size_name_or_option_that_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 16, 16), r"images \(B, 1, H, W\), got \(1, 3, 16, 16\)"),
        ((1, 16, 16), r"images \(B, 1, H, W\)"),
        ((1, 1, 18, 16), r"multiples of 4, got \(18, 16\)"),
        ((1, 1, 16, 18), r"multiples of 4, got \(16, 18\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    model = make()
    for call in (model, model.encode, model.encode_codes):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arc", "rq", "simvq", "sq", "vq"])
def test_compiles_to_the_same(name):
    model = small_tokenizer(name, in_channels=3, image_size=16).train()
    # Noise is drawn outside of the graph.
    compiled = torch.compile(model, fullgraph=name != "sq", backend="aot_eager")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    results = []
    for function in (model, compiled):
        model.zero_grad()
        model.bottleneck.seed_noise(7, 0)
        output = function(images)
        (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        results.append([output.reconstruction, *output.losses.values(), *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
