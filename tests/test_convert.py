"""Public weights become a tokenizer that computes what the public code computed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizer import VQTokenizer

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "official_small_model.safetensors"


def convert(*arguments):
    command = [sys.executable, ROOT / "scripts" / "convert.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ, timeout=120)


def weights():
    return {name: tensor for name, tensor in load_file(GOLDEN).items() if name.startswith("state_dict.")}


@pytest.mark.parametrize("form", ["safetensors", "pt", "nested pt"])
@torch.no_grad()
def test_latents_codes_and_reconstruction_are_those_of_the_public_code(tmp_path, form):
    file = GOLDEN
    if form != "safetensors":
        file = tmp_path / "weights.pt"
        bare = {name.removeprefix("state_dict."): tensor for name, tensor in weights().items()}
        torch.save({"epoch": 3, "model": bare} if form == "nested pt" else bare, file)
    done = convert(file, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    tokenizer = VQTokenizer.from_pretrained(tmp_path / "out").eval()
    golden = load_file(GOLDEN)
    assert (tokenizer.encode(golden["images"]).latents - golden["latents"]).abs().max() < 1e-5
    assert torch.equal(tokenizer.encode_codes(golden["images"]), golden["indices"].long())
    assert (tokenizer.decode(golden["latents"]).sample - golden["reconstruction"]).abs().max() < 1e-5


def without(name):
    return {key: tensor for key, tensor in weights().items() if not key.startswith(f"state_dict.{name}")}


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"weight": torch.zeros(3)}, "no small ArcVQ-VAE model"),
        (without("_pre_vq_conv"), "lacks the tensors of encoder.conv_out"),
        (without("_decoder._conv_1.bias"), "do not fit together"),
        (weights() | {"state_dict._encoder._conv_9.weight": torch.zeros(1)}, "without a place here: _encoder._conv_9"),
    ],
    ids=["another model", "a layer missing", "a tensor missing", "a layer too many"],
)
def test_other_weights_are_one_clear_line_and_no_folder(tmp_path, tensors, text):
    save_file(tensors, tmp_path / "weights.safetensors")
    done = convert(tmp_path / "weights.safetensors", tmp_path / "out")
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and text in done.stderr


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": Path("a")}, tmp_path / "weights.pt")
    done = convert(tmp_path / "weights.pt", tmp_path / "out")
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "holds no plain tensors" in done.stderr


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = convert(GOLDEN, tmp_path)
    assert done.returncode != 0 and "not an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
