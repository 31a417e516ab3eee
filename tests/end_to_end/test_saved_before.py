"""Folders saved before `network_options` existed: they load, and give the latents, codes and images of then."""

import json

import pytest
import torch
from places import GOLDEN
from safetensors.torch import load_file

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from tokenizer import VQTokenizer

BEFORE = GOLDEN / "saved_before"
OLD = {"residual_channels", "strided_layers", "channel_multipliers", "attention_sizes", "z_channels", "norm_groups"}
PIPELINES = {
    "ldm": (ArcVQLDMPipeline, {"num_inference_steps": 5}),
    "pixelcnn": (ArcVQPixelCNNPipeline, {}),
}


@torch.no_grad()
def from_tokenizer(folder):
    tokenizer = VQTokenizer.from_pretrained(folder).eval()
    images = torch.linspace(-1, 1, 2 * 32 * 32).reshape(2, 1, 32, 32).sin()
    codes = tokenizer.encode_codes(images)
    found = {"latents": tokenizer.encode(images).latents, "codes": codes, "images": tokenizer.decode_codes(codes)}
    return tokenizer, found


def from_pipeline(folder, kind):
    load, arguments = PIPELINES[kind]
    pipeline = load.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipeline, {"images": pipeline([3, 7], generator=generators, output_type="pt", **arguments).images}


def expected(name):
    tensors = load_file(BEFORE / "expected.safetensors")
    return {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def assert_as_before(found, name):
    wanted = expected(name)
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=1e-5)
        else:
            assert torch.equal(tensor, wanted[key])


@pytest.mark.parametrize(
    ("name", "options"),
    [("conv", {"residual_channels": 8}), ("vqgan", {"channel_multipliers": [1, 1, 2], "norm_groups": 4})],
)
def test_a_tokenizer_gives_the_same_and_is_saved_in_the_new_form(name, options, tmp_path):
    assert json.loads((BEFORE / name / "config.json").read_text()).keys() > OLD
    tokenizer, found = from_tokenizer(BEFORE / name)
    assert_as_before(found, name)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["network_options"] == options and not OLD & config.keys()
    assert_as_before(from_tokenizer(tmp_path)[1], name)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_gives_the_same_and_is_saved_in_the_new_form(name, tmp_path):
    assert json.loads((BEFORE / name / "vqvae" / "config.json").read_text()).keys() > OLD
    pipeline, found = from_pipeline(BEFORE / name, name)
    assert_as_before(found, name)
    pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "vqvae" / "config.json").read_text())
    assert config["network_options"] == {"residual_channels": 8} and not OLD & config.keys()
    assert_as_before(from_pipeline(tmp_path, name)[1], name)
