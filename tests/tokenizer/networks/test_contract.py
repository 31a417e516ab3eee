"""The contract of base.py, for every network in the registry."""

import os
import subprocess
import sys

import pytest
import torch
from places import PYTHONPATH

from tokenizer import VQTokenizer
from tokenizer import networks as registry
from tokenizer.networks import NETWORKS, Decoder, Encoder, NetworkSizes, make_network, network_options

SIZES = NetworkSizes(
    in_channels=3, image_size=16, encoder_channels=5, decoder_channels=7, hidden_channels=32, num_residual_layers=1
)
every_network = pytest.mark.parametrize("name", NETWORKS)


def make(name, **options):
    network = make_network(name, SIZES, options)
    return network.make_encoder(), network.make_decoder()


@every_network
@torch.no_grad()
def test_shapes_and_downsampling(name):
    encoder, decoder = make(name)
    assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
    factor = encoder.downsampling
    assert encoder(torch.randn(2, 3, 16, 2 * 16)).shape == (2, 5, 16 // factor, 32 // factor)
    assert decoder(torch.randn(2, 7, 2, 1)).shape == (2, 3, 2 * factor, factor)


@every_network
def test_the_last_layer_outputs_the_images(name):
    _, decoder = make(name)
    outputs = []
    decoder.last_layer.register_forward_hook(lambda *call: outputs.append(call[-1]))
    images = decoder(torch.randn(1, 7, 2, 2))
    assert len(outputs) == 1 and torch.equal(outputs[0], images)
    assert decoder.last_layer.weight.requires_grad


@every_network
def test_gradient_checkpointing_is_supported_where_a_submodule_has_the_switch(name):
    for half in make(name):
        switches = [module for module in half.modules() if hasattr(module, "gradient_checkpointing")]
        assert half.supports_gradient_checkpointing == bool(switches)


@every_network
def test_unknown_and_mistyped_options_are_refused_by_their_name(name):
    with pytest.raises(ValueError, match=f"network '{name}' has no option 'nothing'; it has [a-z_]+"):
        make(name, nothing=1)
    for option in network_options():
        with pytest.raises(ValueError, match=f"{option}"):
            make(name, **{option: "a text"})


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("norm_groups", 8.0, "vqgan.norm_groups must be of type int, got 8.0"),
        ("norm_groups", True, "must be of type int, got True"),
        ("norm_groups", None, "must be of type int, got None"),
        ("norm_groups", -8, "finite and not negative, got -8"),
        ("z_channels", "4", "must be of type int or null, got '4'"),
        ("attention_sizes", 16, "vqgan.attention_sizes must be of type list of int or null, got 16"),
        ("channel_multipliers", [1, 2.0], r"must be of type list of int, got \[1, 2.0\]"),
        ("channel_multipliers", [1, -2], "finite and not negative, got -2"),
        ("channel_multipliers", None, "must be of type list of int, got None"),
    ],
)
def test_a_wrong_value_is_refused_with_the_type_that_the_option_takes(option, value, message):
    with pytest.raises(ValueError, match=message):
        make("vqgan", **{option: value})


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=f"unknown network 'unet'; there are {', '.join(NETWORKS)}"):
        make("unet")


class Patches(Encoder):
    """Each token is a patch of pixels, seen through a linear layer."""

    def __init__(self, sizes, side):
        super().__init__()
        self.downsampling = side
        self.linear = torch.nn.Conv2d(sizes.in_channels, sizes.encoder_channels, side, stride=side)

    def forward(self, images):
        return self.linear(images)


class FromPatches(Decoder):
    def __init__(self, sizes, side):
        super().__init__()
        self.linear = torch.nn.ConvTranspose2d(sizes.decoder_channels, sizes.in_channels, side, stride=side)

    @property
    def last_layer(self):
        return self.linear

    def forward(self, quantized):
        return self.linear(quantized)


def make_patches(sizes, side: int = 8):
    return registry.Network(lambda: Patches(sizes, side), lambda: FromPatches(sizes, side))


@pytest.mark.parametrize("options", [None, {"side": 4}])
def test_a_new_network_is_one_line_in_the_registry(monkeypatch, tmp_path, options):
    monkeypatch.setitem(NETWORKS, "patches", f"{__name__}:make_patches")
    sizes = {"image_size": 16, "codebook_size": 8, "codebook_dim": 4}
    tokenizer = VQTokenizer(network="patches", network_options=options, **sizes)
    side = 16 // (options or {"side": 8})["side"]
    assert tokenizer.code_shape == (side, side)
    tokenizer.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(images).codes, tokenizer(images).codes)
    assert loaded(images).reconstruction.shape == images.shape
    with pytest.raises(ValueError, match="network 'patches' has no gradient checkpointing"):
        tokenizer.enable_gradient_checkpointing()


HEAVY = """
import sys
from diffusers import ConfigMixin, ModelMixin
import diffusers.utils.accelerate_utils
before = {name for name in sys.modules if name.startswith("transformers")}
STATEMENT
after = {name for name in sys.modules if name.startswith(("transformers", "diffusers.models.autoencoders"))}
print(sorted(after - before)[:9])
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from tokenizer import VQTokenizer; VQTokenizer(network='conv')",
        "from arcvq.training.tokenizer import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "help"],
)
def test_autoencoders_of_diffusers_and_transformers_are_not_imported_before_they_are_used(statement):
    """diffusers' ModelMixin itself imports a few light modules of transformers; nothing may come on top."""
    command = [sys.executable, "-c", HEAVY.replace("STATEMENT", statement)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": PYTHONPATH}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
