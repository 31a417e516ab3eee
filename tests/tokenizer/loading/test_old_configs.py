"""Configs from before `network_options` existed."""

import json

import pytest
from places import GOLDEN

from arcvq.runs.settings import check_settings, read_settings
from priors.latents import tokenizer_fingerprint
from tokenizer import VQTokenizer
from tokenizer.loading.old_configs import with_network_options, without_network_options

BEFORE = GOLDEN / "saved_before"


@pytest.mark.parametrize("name", ["conv", "vqgan"])
def test_moving_the_options_back_gives_the_old_config(name):
    old = json.loads((BEFORE / name / "config.json").read_text())
    new = with_network_options(old)
    assert without_network_options(new) == old
    assert with_network_options(new) == new


def test_null_was_the_default_and_is_not_moved():
    assert with_network_options({"network": "vqgan", "norm_groups": None, "z_channels": None}) == {"network": "vqgan"}
    old = {"norm_groups": 4, "attention_sizes": None, "channel_multipliers": [1, 2]}
    assert with_network_options(old) == {"network_options": {"norm_groups": 4, "channel_multipliers": [1, 2]}}


def test_a_config_of_both_forms_is_refused_where_they_differ_in_an_option():
    both = {"network_options": {"z_channels": 3}, "norm_groups": 4}
    assert with_network_options(both) == {"network_options": {"z_channels": 3, "norm_groups": 4}}
    with pytest.raises(ValueError, match="norm_groups next to network_options"):
        with_network_options(both | {"network_options": {"norm_groups": 3}})


def test_an_old_option_of_the_other_network_is_still_an_error(tmp_path):
    for name, option, value in (("conv", "attention_sizes", [8]), ("vqgan", "residual_channels", 32)):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((BEFORE / name / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {option: value}))
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(
            (BEFORE / name / "diffusion_pytorch_model.safetensors").read_bytes()
        )
        with pytest.raises(ValueError, match=f"network '{name}' has no option '{option}'; it has"):
            VQTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("conv", "76545676c39754aa8ed6a80acf6fe3514d5f540c92c1c9b7c3dfed09593358b8"),
        ("vqgan", "48e7f77dda4402939ae5ed75a01684237c68ad169f5688f0407e4b466b30b5f4"),
    ],
)
def test_a_tokenizer_keeps_the_fingerprint_that_its_runs_and_caches_are_known_by(name, fingerprint, tmp_path):
    tokenizer = VQTokenizer.from_pretrained(BEFORE / name)
    assert tokenizer_fingerprint(tokenizer) == fingerprint
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(VQTokenizer.from_pretrained(tmp_path)) == fingerprint


def test_the_fingerprint_depends_on_the_networks_options():
    sizes = {"image_size": 16, "codebook_size": 8, "codebook_dim": 4, "hidden_channels": 8, "network": "vqgan"}
    tokenizers = [
        VQTokenizer(**sizes, network_options={"channel_multipliers": (1, 1), "norm_groups": groups})
        for groups in (4, 8)
    ]
    tokenizers[1].load_state_dict(tokenizers[0].state_dict())
    assert len(set(map(tokenizer_fingerprint, tokenizers))) == 2


def test_a_run_from_before_resumes_and_one_with_other_options_does_not(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text("model: {network: vqgan, norm_groups: 8, z_channels: null, strided_layers: null}\noptim: {lr: 1}\n")
    same = {"model": {"network": "vqgan", "network_options": {"norm_groups": 8}}, "optim": {"lr": 1}}
    assert read_settings(file) == same
    check_settings(file, same)
    same["model"]["network_options"]["norm_groups"] = 4
    with pytest.raises(ValueError, match=r"model.network_options.norm_groups was 8 and is now 4"):
        check_settings(file, same)
    file.write_text("model: {network: conv, norm_groups: null}\noptim: {lr: 1}\n")
    check_settings(file, {"model": {"network": "conv", "network_options": None}, "optim": {"lr": 1}})


def test_an_old_argument_of_a_call_is_refused_and_not_ignored(tmp_path):
    VQTokenizer(1, 16, codebook_size=8, codebook_dim=4, hidden_channels=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"strided_layers .* network_options"):
        VQTokenizer.from_pretrained(tmp_path, strided_layers=1)
