"""Public weights become a tokenizer that computes what the public code computed."""

import sys
import types
from pathlib import Path
from unittest import mock

import places
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import conv2d, group_norm, interpolate, pad, silu

from arcvq.conversion import convert
from arcvq.conversion.state_dict_keys import PUBLIC_NETWORKS
from arcvq.faults import forked_process
from tokenizer import VQTokenizer

GOLDEN = {kind: places.GOLDEN / f"official_{kind}_model.safetensors" for kind in ("small", "vqgan")}


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
    assert config.image_size == 256
    assert config.network_options["attention_sizes"] == [128]  # the level, not the size it was saved with


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
    options = {"channel_multipliers": [1, 2, 1], "attention_sizes": [8], "z_channels": 10}
    sizes = {"network_options": options, "num_residual_layers": 2}
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


def refused(folder, file, *options):
    """The one line by which a file is refused; nothing is written."""
    with pytest.raises(ValueError) as error:
        convert.main([str(file), str(folder / "out"), *options])
    assert "\n" not in str(error.value) and not (folder / "out").exists()
    return str(error.value)


FOREIGN = {
    "ResNet": ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"],
    "UNet": ["model.diffusion_model.time_embed.0.weight", "model.diffusion_model.input_blocks.0.0.weight"],
    "language model": ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"],
    "diffusers": [
        "encoder.conv_in.weight",
        "encoder.down_blocks.0.resnets.0.norm1.weight",
        "quantize.embedding.weight",
    ],
    "LlamaGen": ["model.encoder.conv_in.weight", "model.encoder.conv_blocks.0.res.0.norm1.weight"],
    "one": ["weight"],
}


@pytest.mark.parametrize("names", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_network_is_told_by_its_names_and_what_is_expected(tmp_path, names):
    torch.save({"state_dict": {name: torch.zeros(2, 3, 3, 3) for name in names}}, tmp_path / "last.ckpt")
    said = refused(tmp_path, tmp_path / "last.ckpt")
    for part in ("no tokenizer of the public code", names[0], names[-1], "encoder.conv_in.weight", "encoder.down.0"):
        assert part in said


def test_what_has_no_codes_is_told_by_what_it_has(tmp_path):
    twice = {
        f"quant_conv.{kind}": torch.cat([weights("vqgan")[f"quant_conv.{kind}"]] * 2) for kind in ("weight", "bias")
    }
    save_file(without("vqgan", "quantize") | twice, tmp_path / "kl.safetensors")
    assert "KL autoencoder" in refused(tmp_path, tmp_path / "kl.safetensors")
    save_file(without("vqgan", "quantize") | {"quantize.embed.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert "lacks quantize.embedding.weight, and has quantize.embed.weight" in refused(
        tmp_path, tmp_path / "a.safetensors"
    )


@pytest.mark.parametrize(
    ("kind", "beside"),
    [
        ("vqgan", "quantize.embedding_proj.weight"),
        ("vqgan", "quantize.embedding_2.weight"),
        ("vqgan", "quantize.proj.bias"),
        ("small", "_vq_vae._embedding.weight"),
        ("small", "_vq_vae.project_in.weight"),
    ],
)
def test_codes_that_are_made_of_more_than_the_table_are_refused_by_the_layer(tmp_path, kind, beside):
    save_file(weights(kind) | {beside: torch.zeros(4)}, tmp_path / "a.safetensors")
    assert beside in refused(tmp_path, tmp_path / "a.safetensors")


@pytest.mark.parametrize("network", ["conv", "vqgan"])
@pytest.mark.parametrize("quantizer", ["arc", "hvq", "vae"])
def test_a_tokenizer_of_this_project_needs_no_conversion(tmp_path, network, quantizer):
    model = VQTokenizer(1, 16, network=network, quantizer=quantizer, hidden_channels=32, codebook_dim=4)
    model.save_pretrained(tmp_path / "run" / "tokenizer")
    torch.save({"module": {f"vqvae.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "a.pt")
    file = tmp_path / "run" / "tokenizer" / "diffusion_pytorch_model.safetensors"
    for path in (file, file.parent, tmp_path / "run", tmp_path / "a.pt"):
        said = refused(tmp_path, path)
        assert "needs no conversion" in said and "VQTokenizer.from_pretrained" in said
    assert "is a folder; name the file" in refused(tmp_path, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_the_first_tensor_that_is_not_finite_is_named(tmp_path, value):
    broken = {name: tensor.double() for name, tensor in weights("vqgan").items()}
    for name in ("encoder.norm_out.bias", "decoder.conv_out.bias"):
        broken[name] = broken[name].clone()
        broken[name][0] = value
    torch.save(broken, tmp_path / "a.pt")
    assert "encoder.norm_out.bias" in (said := refused(tmp_path, tmp_path / "a.pt")) and "NaN or infinity" in said
    # What is left out may hold anything.
    torch.save(weights("vqgan") | {"loss.logvar": torch.tensor(value)}, tmp_path / "b.pt")
    convert.main([str(tmp_path / "b.pt"), str(tmp_path / "out")])


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_what_are_no_floating_point_weights_are_named(tmp_path, dtype):
    torch.save(weights("vqgan") | {"decoder.conv_out.bias": torch.zeros(3, dtype=dtype)}, tmp_path / "a.pt")
    said = refused(tmp_path, tmp_path / "a.pt")
    assert "decoder.conv_out.bias" in said and str(dtype).removeprefix("torch.") in said


@pytest.mark.parametrize("form", ["zip", "before torch 1.6", "safetensors"])
def test_a_file_cut_off_anywhere_is_told_as_such(tmp_path, form):
    file, cut = tmp_path / "whole", tmp_path / "weights.ckpt"
    if form == "safetensors":
        save_file(weights("small"), file)
    else:
        save_lightning(lightning(weights("small")), file, _use_new_zipfile_serialization=form == "zip")
    content = file.read_bytes()
    lengths = [
        10,
        40,
        200,
        600,
        1000,
        1500,
        3000,
        *(len(content) * part // 9 for part in range(1, 9)),
        len(content) - 1,
    ]
    for length in lengths:
        cut.write_bytes(content[:length])
        assert "cut off" in refused(tmp_path, cut), length


@pytest.mark.parametrize("gap", [1, 4096])
def test_a_checkpoint_with_a_gap_in_its_middle_is_told_as_damaged(tmp_path, gap):
    torch.save(weights("vqgan"), tmp_path / "whole.pt")
    content = bytearray((tmp_path / "whole.pt").read_bytes())
    middle = len(content) // 2
    content[middle : middle + gap] = bytes(255 - byte for byte in content[middle : middle + gap])
    (tmp_path / "damaged.pt").write_bytes(content)
    assert "damaged" in refused(tmp_path, tmp_path / "damaged.pt")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights("small"), tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    convert.main([str(tmp_path / "unchecked.pt"), str(tmp_path / "out")])  # nothing to compare with is no damage


INSTEAD = {
    "nothing": (b"", "is empty"),
    "a page": (b"\r\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "an HTML page"),
    "a page with a mark": (b"\xef\xbb\xbf<HTML lang='en'>", "an HTML page"),
    "an error of a store": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234567\n", "1,234,567 bytes"),
    "words": (b"Entry not found", "'Entry not found'"),
    "JSON": (b'{"error": "Invalid username or password."}', "Invalid username"),
    "an archive": (b"\x1f\x8b\x08\x00" + bytes(range(60)), "gzip archive"),
    "zeros": (bytes(5000), "begins with zeros"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(60)), "PNG"),
}


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.safetensors"])
@pytest.mark.parametrize(("content", "said"), INSTEAD.values(), ids=INSTEAD)
def test_another_file_under_the_name_of_one_is_told_as_such(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path, tmp_path / name)


def test_the_container_is_known_by_its_contents(tmp_path):
    save_file(weights("small"), tmp_path / "a.ckpt")
    torch.save(weights("small"), tmp_path / "b.safetensors")
    for file in ("a.ckpt", "b.safetensors"):
        convert.main([str(tmp_path / file), str(tmp_path / file.partition(".")[0])])
        assert_computes_the_golden_numbers(tmp_path / file.partition(".")[0], "small")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_is_broken_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=f"{name} holds no plain tensors"):
        convert.main([str(tmp_path / name), str(tmp_path / "out")])


def test_a_folder_that_holds_something_is_left_alone_and_said_in_one_line(tmp_path):
    convert.main([str(GOLDEN["small"]), str(tmp_path)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    command = [sys.executable, "-m", "arcvq", "convert", GOLDEN["vqgan"], tmp_path]
    done = forked_process.run(list(map(str, command)), tmp_path)
    assert done.returncode != 0 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "not an empty folder" in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


class LitEma(torch.nn.Module):
    """Latent diffusion's averages, as they are published: buffers by the parameters' names without dots."""

    def __init__(self, model, decay=0.9):
        super().__init__()
        self.names = {name: name.replace(".", "") for name, value in model.named_parameters() if value.requires_grad}
        self.register_buffer("decay", torch.tensor(decay))
        self.register_buffer("num_updates", torch.tensor(0, dtype=torch.int))
        for name, stored in self.names.items():
            self.register_buffer(stored, model.get_parameter(name).detach().clone())

    @torch.no_grad()
    def forward(self, model):
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, stored in self.names.items():
            shadow = getattr(self, stored)
            shadow.sub_((1 - decay) * (shadow - model.get_parameter(name)))


class Public(torch.nn.Module):
    """Parameters under the names of a state dict; some of them, by what their names begin with, are not trained."""

    def __init__(self, tensors, frozen=()):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module._modules[part]
            module.register_parameter(last, torch.nn.Parameter(tensor.clone(), not name.startswith(frozen)))


def averaged_model(kind, frozen=()):
    """A model of the public code beside its averages, after three steps that move what is trained."""
    model = Public(weights(kind), frozen)
    model.model_ema = LitEma(model)
    for _ in range(3):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1
        model.model_ema(model)
    plain = {name: value for name, value in model.state_dict().items() if not name.startswith("model_ema")}
    averages = {name: model.model_ema.get_buffer(stored) for name, stored in model.model_ema.names.items()}
    return model.state_dict(), plain, plain | averages


def assert_same_weights(folder, tensors, expected):
    """As if `expected` had been converted from a file of its own."""
    save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")
    convert.main([str(folder / "expected.safetensors"), str(folder / "expected")])
    found, wanted = (
        load_file(place / "diffusion_pytorch_model.safetensors") for place in (tensors, folder / "expected")
    )
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "module.vq."])
@pytest.mark.parametrize("kind", GOLDEN)
def test_the_averages_of_latent_diffusion_are_taken_when_asked_for(tmp_path, capsys, kind, prefix):
    whole, plain, averages = averaged_model(kind)
    torch.save({"state_dict": {prefix + name: value for name, value in whole.items()}}, tmp_path / "last.ckpt")
    for options, expected in ([], plain), (["--ema"], averages):
        out = tmp_path / f"out{len(options)}"
        convert.main([str(tmp_path / "last.ckpt"), str(out), *options])
        (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("weights: ")]
        assert f"{prefix}model_ema" in said and ("--ema" in said) == (not options)
        (tmp_path / f"x{len(options)}").mkdir()
        assert_same_weights(tmp_path / f"x{len(options)}", out, expected)
        capsys.readouterr()


def test_what_was_not_trained_has_no_average_and_is_told(tmp_path, capsys):
    whole, _, averages = averaged_model("vqgan", frozen=("encoder.", "quant_conv.", "quantize."))
    torch.save(whole, tmp_path / "last.ckpt")
    convert.main([str(tmp_path / "last.ckpt"), str(tmp_path / "out"), "--ema"])
    said = capsys.readouterr().out
    assert all(part in said for part in ("encoder.*", "quant_conv.*", "quantize.*")) and "decoder.*" not in said
    assert_same_weights(tmp_path, tmp_path / "out", averages)


def test_averages_that_cannot_be_all_are_refused(tmp_path):
    whole, plain, _ = averaged_model("vqgan")
    lacking = {name: value for name, value in whole.items() if name != "model_ema.decoderconv_outbias"}
    first = whole | {"model_ema.num_updates": torch.tensor(0)}
    another = plain | {
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3),
        "model_ema.decay": torch.zeros(1),
    }
    broken = whole | {"model_ema.decoderconv_outbias": torch.full((3,), float("nan"))}
    twice = whole | {f"ema.{name}": value for name, value in plain.items()}
    for tensors, text in (
        (lacking, "decoder.conv_out.bias"),
        (first, "num_updates is 0"),
        (another, "no averaged weights"),
        (plain, "no averaged weights"),
        (broken, "model_ema.decoderconv_outbias holds NaN"),
        (twice, "'ema.', 'model_ema.'"),
    ):
        torch.save(tensors, tmp_path / "last.ckpt")
        assert text in refused(tmp_path, tmp_path / "last.ckpt", "--ema")
    for name, tensors in {"other": another, "broken": broken}.items():  # whose plain weights are as good as any
        torch.save(tensors, tmp_path / "last.ckpt")
        convert.main([str(tmp_path / "last.ckpt"), str(tmp_path / name)])


@pytest.mark.parametrize(
    "names",
    [("model", "ema"), ("state_dict", "state_dict_ema"), ("net", "net_ema"), ("net", "EMA-1"), ("net", "emaModel")],
)
def test_of_two_entries_the_averaged_one_is_taken_when_asked_for(tmp_path, capsys, names):
    plain = weights("small")
    averages = {name: value + 1 for name, value in plain.items()}
    torch.save({names[0]: plain, names[1]: averages, "steps": 3}, tmp_path / "a.pt")
    for options, expected in ([], plain), (["--ema"], averages):
        folder = tmp_path / f"x{len(options)}"
        folder.mkdir()
        convert.main([str(tmp_path / "a.pt"), str(folder / "out"), *options])
        assert f"{names[1]}." in capsys.readouterr().out
        assert_same_weights(folder, folder / "out", expected)
