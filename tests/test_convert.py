"""Public weights become a tokenizer that computes what the public code computed."""

import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
import warm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d, group_norm, interpolate, pad, silu

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import convert
from public_names import PUBLIC_NETWORKS

from tokenizer import VQTokenizer

GOLDEN = {kind: Path(__file__).parent / "golden" / f"official_{kind}_model.safetensors" for kind in ("small", "vqgan")}


class Callback:
    """A class that no tokenizer needs, as old Lightning checkpoints hold."""


def weights(kind):
    """The golden model's tensors under their public names."""
    tensors = load_file(GOLDEN[kind])
    return {
        name.removeprefix("state_dict."): tensor for name, tensor in tensors.items() if name.startswith("state_dict.")
    }


class ModelCheckpoint:
    """In the place of Lightning's class, which its checkpoints name."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"


class AttributeDict(dict):
    __module__ = "pytorch_lightning.utilities.parsing"


def save_lightning(content, file, **options):
    """torch.save, where pickle finds Lightning's classes in their modules; no one finds them afterwards."""
    modules = {}
    for stand_in in (ModelCheckpoint, AttributeDict):
        for depth in range(1, stand_in.__module__.count(".") + 2):
            name = ".".join(stand_in.__module__.split(".")[:depth])
            modules.setdefault(name, types.ModuleType(name))
        setattr(modules[stand_in.__module__], stand_in.__name__, stand_in)
    with mock.patch.dict(sys.modules, modules):
        torch.save(content, file, **options)


def lightning(tensors):
    """What Lightning stores beside the weights of a VQGAN."""
    beside = {"loss.discriminator.main.0.weight": 2, "loss.discriminator.main.0.bias": 1}
    beside |= {"loss.perceptual_loss.net.slice1.0.weight": 3, "loss.perceptual_loss.lin0.model.1.weight": 1}
    beside |= {"model_ema.decay": 1, "model_ema.encoderconv_inweight": 2, "quantize.embedding.cluster_size": 64}
    return {
        "epoch": 3,
        "global_step": 70_000,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": tensors | {name: torch.zeros(size) for name, size in beside.items()},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "hyper_parameters": AttributeDict(embed_dim=8),
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "last.ckpt"}},
    }


def assert_computes_the_golden_numbers(folder, kind):
    tokenizer, golden = VQTokenizer.from_pretrained(folder).eval(), load_file(GOLDEN[kind])
    assert (tokenizer.encode(golden["images"]).latents - golden["latents"]).abs().max() < 1e-5
    assert torch.equal(tokenizer.encode_codes(golden["images"]), golden["indices"].long())
    assert (tokenizer.decode(golden["latents"]).sample - golden["reconstruction"]).abs().max() < 1e-5
    return tokenizer


@pytest.mark.parametrize("form", ["safetensors", "bare safetensors", "pt", "nested pt", "ckpt"])
@pytest.mark.parametrize("kind", GOLDEN)
@torch.no_grad()
def test_latents_codes_and_reconstruction_are_those_of_the_public_code(tmp_path, capsys, kind, form):
    file, options = GOLDEN[kind], []
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    if form != "safetensors":
        file = tmp_path / f"weights.{form.split()[-1]}"
        if form == "bare safetensors":
            save_file(weights(kind), file, metadata)
        else:
            content = {"epoch": 3, "model": weights(kind)} if form == "nested pt" else weights(kind)
            save_lightning(lightning(weights(kind)) if form == "ckpt" else content, file)
            options = ["--image_size", "32"]
    convert.main([str(file), str(tmp_path / "out"), *options])
    printed = capsys.readouterr().out
    tokenizer = assert_computes_the_golden_numbers(tmp_path / "out", kind)
    assert tokenizer.config.image_size == 32 and tokenizer.config.quantizer == "arc"
    known = kind == "vqgan" and "safetensors" in form
    assert ("quantizer arc: the file's metadata says cosine" if known else "the file does not tell") in printed
    if form == "ckpt":
        quantize = "1 of quantize.embedding.cluster_size" if kind == "vqgan" else "1 of quantize"
        kinds = f"1 of callbacks, 2 of loss.discriminator, 2 of loss.perceptual_loss, 2 of model_ema, {quantize}"
        assert printed.splitlines()[0] == f"left out: 8 tensors ({kinds})"
    else:
        assert ("left out" in printed) == (form == "safetensors")  # the golden file's own inputs and outputs


@torch.no_grad()
def test_the_look_up_of_the_file_can_be_overruled(tmp_path, capsys):
    convert.main([str(GOLDEN["vqgan"]), str(tmp_path / "out"), "--quantizer", "vq"])
    assert "quantizer vq: by --quantizer" in capsys.readouterr().out
    tokenizer, golden = VQTokenizer.from_pretrained(tmp_path / "out"), load_file(GOLDEN["vqgan"])
    tokens = golden["latents"].movedim(1, -1).flatten(0, 2)
    nearest = torch.cdist(tokens, tokenizer.codebook).argmin(dim=1)
    assert torch.equal(tokenizer.encode_codes(golden["images"]).flatten(), nearest)
    assert not torch.equal(nearest, golden["indices"].flatten())


@pytest.mark.parametrize(("metadata", "quantizer"), [({"lookup": "l2"}, "vq"), ({}, "arc")])
def test_look_up_and_image_size_by_metadata_or_by_default(tmp_path, metadata, quantizer):
    save_file(weights("vqgan"), tmp_path / "weights.safetensors", metadata)
    convert.main([str(tmp_path / "weights.safetensors"), str(tmp_path / "out")])
    config = VQTokenizer.from_pretrained(tmp_path / "out").config
    assert config.quantizer == quantizer
    assert config.image_size == 256 and config.attention_sizes == [128]  # the level, not the size it was saved with


def test_a_look_up_that_no_quantizer_has_is_refused(tmp_path):
    save_file(weights("vqgan"), tmp_path / "weights.safetensors", {"lookup": "gumbel"})
    with pytest.raises(ValueError, match="lookup 'gumbel', of cosine, l2; set --quantizer"):
        convert.main([str(tmp_path / "weights.safetensors"), str(tmp_path / "out")])


class Taming:
    """A VQGAN's forward pass written from the public names alone."""

    def __init__(self, state, levels):
        self.state, self.levels = state, levels

    def has(self, name):
        return any(key.startswith(f"{name}.") for key in self.state)

    def conv(self, name, values, **options):
        weight = self.state[f"{name}.weight"]
        same = {"padding": weight.shape[-1] // 2}
        return conv2d(values, weight, self.state[f"{name}.bias"], **(same | options))

    def norm(self, name, values):
        return group_norm(values, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def block(self, name, values):
        hidden = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", values)))
        hidden = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", hidden)))
        shortcut = f"{name}.nin_shortcut"
        return hidden + (self.conv(shortcut, values) if self.has(shortcut) else values)

    def attention(self, name, values):
        normed = self.norm(f"{name}.norm", values)
        query, key, value = (self.conv(f"{name}.{part}", normed).flatten(2) for part in "qkv")
        attended = torch.softmax(query.mT @ key / key.shape[1] ** 0.5, dim=-1)  # (B, query, key)
        return values + self.conv(f"{name}.proj_out", (value @ attended.mT).view_as(values))

    def level(self, name, values):
        index = 0
        while self.has(f"{name}.block.{index}"):
            values = self.block(f"{name}.block.{index}", values)
            if self.has(f"{name}.attn"):
                values = self.attention(f"{name}.attn.{index}", values)
            index += 1
        return values

    def middle(self, name, values):
        return self.block(f"{name}.block_2", self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", values)))

    def latents(self, images):
        hidden = self.conv("encoder.conv_in", images)
        for level in range(self.levels):
            hidden = self.level(f"encoder.down.{level}", hidden)
            if level < self.levels - 1:
                hidden = self.conv(
                    f"encoder.down.{level}.downsample.conv", pad(hidden, (0, 1, 0, 1)), stride=2, padding=0
                )
        hidden = silu(self.norm("encoder.norm_out", self.middle("encoder.mid", hidden)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", hidden))

    def images(self, rows):
        hidden = self.middle("decoder.mid", self.conv("decoder.conv_in", self.conv("post_quant_conv", rows)))
        for level in reversed(range(self.levels)):
            hidden = self.level(f"decoder.up.{level}", hidden)
            if level > 0:
                hidden = self.conv(f"decoder.up.{level}.upsample.conv", interpolate(hidden, scale_factor=2))
        return self.conv("decoder.conv_out", silu(self.norm("decoder.norm_out", hidden)))


@torch.no_grad()
def test_levels_attention_and_channels_of_any_number_are_read_off_the_tensors(tmp_path):
    sizes = {"channel_multipliers": [1, 2, 1], "attention_sizes": [8], "z_channels": 10, "num_residual_layers": 2}
    sizes |= {"image_size": 16, "in_channels": 1, "hidden_channels": 32, "codebook_size": 12, "codebook_dim": 6}
    model = VQTokenizer(network="vqgan", quantizer="vq", **sizes).eval()
    public = {"quantize.embedding.weight": model.codebook.clone()}
    for name, parameter in [*model.encoder.named_parameters("encoder"), *model.decoder.named_parameters("decoder")]:
        linear = parameter.ndim == 2
        tensor = parameter + torch.randn_like(parameter) / 10
        public[PUBLIC_NETWORKS[1].public_name(name, 3)] = tensor[:, :, None, None] if linear else tensor
    save_file(public, tmp_path / "weights.safetensors")
    arguments = ["--image_size", "16", "--quantizer", "vq"]
    convert.main([str(tmp_path / "weights.safetensors"), str(tmp_path / "out"), *arguments])
    converted = VQTokenizer.from_pretrained(tmp_path / "out")
    assert {name: converted.config[name] for name in sizes} == sizes
    images = torch.rand(2, 1, 16, 16)
    rows = converted.bottleneck.lookup(torch.randint(12, (2, 4, 4)))
    expected = Taming(public, 3)
    torch.testing.assert_close(converted.encoder(images), expected.latents(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(converted.decoder(rows), expected.images(rows), rtol=1e-4, atol=1e-5)


def without(kind, name):
    return {key: tensor for key, tensor in weights(kind).items() if not key.startswith(name)}


def wider(kind, name):
    return weights(kind) | {name: torch.zeros([size + 1 for size in weights(kind)[name].shape])}


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"weight": torch.zeros(3)}, "it is no tokenizer of the public code"),
        (without("small", "_pre_vq_conv"), r"lacks _pre_vq_conv.weight, _pre_vq_conv.bias$"),
        (without("small", "_decoder._conv_1.bias"), r"lacks _decoder._conv_1.bias$"),
        (
            weights("small") | {"_encoder._conv_9.weight": torch.zeros(1)},
            "without a place here: _encoder._conv_9.weight",
        ),
        (wider("small", "_decoder._conv_1.bias"), r"_decoder._conv_1.bias of \(33,\) instead of \(32,\)"),
        (without("vqgan", "quantize"), r"lacks quantize.embedding.weight$"),
        (without("vqgan", "decoder.up.1.attn"), r"lacks decoder.up.1.attn.0.norm.weight, .* and 15 more$"),
        (weights("vqgan") | {"decoder.up.2.x": torch.zeros(1)}, "without a place here: decoder.up.2.x$"),
        (wider("vqgan", "encoder.down.0.block.0.conv1.weight"), r"levels of \[33, 64\] channels after .* of 32"),
        (
            {f"{part}.{name}": tensor for part in "ab" for name, tensor in weights("vqgan").items()},
            "holds 2 tokenizers, below 'a.', 'b.'",
        ),
    ],
)
def test_other_weights_are_an_error_that_names_them_and_no_folder(tmp_path, tensors, text):
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=text):
        convert.main([str(tmp_path / "weights.safetensors"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_classes_is_refused_by_their_names(tmp_path, zipped):
    content = lightning(weights("vqgan")) | {"callbacks": {Callback: {"best": Path("a")}}}
    save_lightning(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"could run code: (?!.*pytorch_lightning).*Callback.*torch.save\(torch.load\('.*last.ckpt'"
    ):
        convert.main([str(tmp_path / "last.ckpt"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_is_broken_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=f"{name} holds no plain tensors"):
        convert.main([str(tmp_path / name), str(tmp_path / "out")])


def test_a_folder_that_holds_something_is_left_alone_and_said_in_one_line(tmp_path):
    convert.main([str(GOLDEN["small"]), str(tmp_path)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, convert.__file__, GOLDEN["vqgan"], tmp_path]
    done = warm.run(list(map(str, command)), tmp_path)
    assert done.returncode != 0 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "not an empty folder" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
