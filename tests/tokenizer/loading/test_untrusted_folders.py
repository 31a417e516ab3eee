"""Folders that somebody else has made load, or are one ValueError: no code is run, no pickle is read."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DModel
from places import PYTHONPATH
from safetensors.torch import load_file, save_file

from arcvq.runs.results import load_pipeline, load_tokenizer
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from pipelines.class_conditional import check_id2label
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.codebook_file import load_codebook_file, save_codebook_file
from tokenizer.loading.model_folder import WEIGHTS
from tokenizer.quantizers import QUANTIZERS, make_quantizer

NAMES = {0: "a", 1: "b"}
FILE = f"{WEIGHTS}.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    sizes = {"in_channels": 1, "image_size": 16, "codebook_size": 8, "codebook_dim": 4, "hidden_channels": 8}
    tokenizer = VQTokenizer(**sizes, network_options={"residual_channels": 4})
    unet = make_unet((4, 4, 4), 2, 32, (1,), num_blocks=1)
    attending = make_unet((4, 4, 4), 2, 32, (1,), num_blocks=1, conditioning="cross_attention")
    prior = PixelCNN(8, 2, (4, 4), channels=4, num_layers=2, head_channels=4)
    ArcVQLDMPipeline(tokenizer, unet, make_scheduler(), NAMES, 1.0).save_pretrained(folder / "ldm")
    ArcVQLDMPipeline(tokenizer, attending, make_scheduler(), NAMES, 1.0).save_pretrained(folder / "attending")
    ArcVQPixelCNNPipeline(tokenizer, prior, NAMES).save_pretrained(folder / "pixelcnn")
    return folder


@pytest.fixture
def folder(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "folders")


def refused(load, place, *parts):
    """The message, which is one line and says these parts."""
    with pytest.raises(ValueError) as error:
        load(place)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1500
    for part in parts:
        assert part in message, message
    return message


def change(file, **values):
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | values))


MODELS = [
    ("ldm/vqvae", VQTokenizer.from_pretrained),
    ("pixelcnn/prior", PixelCNN.from_pretrained),
    ("ldm/unet", lambda place: ArcVQLDMPipeline.from_pretrained(place.parent)),
    ("attending/unet", lambda place: ArcVQLDMPipeline.from_pretrained(place.parent)),
    ("ldm/vqvae", load_tokenizer),
    ("pixelcnn/prior", lambda place: load_pipeline(str(place.parent))),
]


def test_the_folders_load_and_so_do_copies_of_their_parts(folder):
    for place, load in MODELS:
        load(folder / place)
    assert isinstance(load_pipeline(str(folder / "ldm")), ArcVQLDMPipeline)
    assert VQTokenizer.from_pretrained(folder / "ldm", subfolder="vqvae").config.codebook_size == 8


class Payload:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(("place", "load"), MODELS)
@pytest.mark.parametrize("name", [f"{WEIGHTS}.bin", f"{WEIGHTS}.pt", "pytorch_model.bin", f"{WEIGHTS}.pickle"])
def test_pickles_are_refused_and_never_read(folder, place, load, name, tmp_path):
    trace = tmp_path / "executed"
    (folder / place / FILE).unlink()
    (folder / place / name).write_bytes(pickle.dumps(Payload(trace), 2))
    refused(load, folder / place, name, "only safetensors are read", "arcvq convert")
    assert not trace.exists()


def test_a_caller_cannot_ask_for_pickles_by_mistake(folder):
    for load in (VQTokenizer.from_pretrained, ArcVQLDMPipeline.from_pretrained):
        refused(lambda place, load=load: load(place, use_safetensors=False), folder / "ldm", "would read pickles")


def headed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


BROKEN = {
    "empty": b"",
    "short": b"abc",
    "length of 10^9": struct.pack("<Q", 10**9) + b"{}",
    "no JSON": headed(b"{{{{"),
    "data that is not there": headed({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
    "git lfs": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_weights_are_refused(folder, content):
    for place, load in MODELS[:4]:
        (folder / place / FILE).write_bytes(content)
        refused(load, folder / place, FILE, "get it anew")


def test_a_folder_fetched_without_its_large_files_says_so(folder):
    for place, load in MODELS[:4]:
        (folder / place / FILE).write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
        )
        refused(load, folder / place, FILE, "git lfs pull")


def test_truncated_weights_are_refused(folder):
    for place, load in MODELS[:4]:
        content = (folder / place / FILE).read_bytes()
        for length in (7, 100, len(content) // 2, len(content) - 1):
            (folder / place / FILE).write_bytes(content[:length])
            refused(load, folder / place, FILE, "truncated")


@pytest.mark.parametrize(("place", "load"), MODELS[:4])
def test_weights_of_other_names_or_shapes_are_refused(folder, place, load):
    file = folder / place / FILE
    weights = load_file(file)
    name = next(name for name in weights if weights[name].ndim == 4)
    for changed, said in (
        ({name: weights[name].repeat(2, 1, 1, 1)}, f"{name} is ["),
        ({"left": torch.zeros(1)}, "left left over"),
    ):
        save_file(weights | changed, file)
        refused(load, folder / place, said)
    save_file({key: value for key, value in weights.items() if key != name}, file)
    refused(load, folder / place, f"{name} missing")


def test_weights_in_several_files_are_refused(folder):
    tokenizer = VQTokenizer.from_pretrained(folder / "ldm" / "vqvae")
    tokenizer.save_pretrained(folder / "shards", max_shard_size="2KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 1
    refused(VQTokenizer.from_pretrained, folder / "shards", "weights in several files are not read", "max_shard_size")


def test_what_is_no_file_is_not_read(folder):
    for place, load in MODELS:
        for name in (FILE, "config.json"):
            file = folder / place / name
            content = file.read_bytes()
            file.unlink()
            os.mkfifo(file)
            refused(load, folder / place)
            file.unlink()
            file.symlink_to("/dev/zero")
            refused(load, folder / place)
            file.unlink()
            file.write_bytes(content)
        load(folder / place)


SIZES = [
    {"image_size": 0},
    {"image_size": 15},
    {"in_channels": None},
    {"codebook_size": 16},
    {"codebook_size": 10**12},
    {"codebook_dim": 10**6},
    {"codebook_dim": "4"},
    {"hidden_channels": 10**12},
    {"hidden_channels": -1},
    {"num_residual_layers": 3},
    {"num_residual_layers": 1.5},
]


OPTIONS = [
    {"network": "vqgan", "norm_groups": 0},
    {"network": "resnet"},
    {"attention_sizes": [4.0]},
    {"network": "vqgan", "network_options": {"channel_multipliers": [1, None]}},
    {"network": "vqgan", "network_options": {"attention_sizes": [4.0]}},
    {"network_options": [1]},
    {"network_options": {"strided_layers": True}},
    {"network_options": {"nothing": 1}},
    {"network_options": {"residual_channels": 4}, "residual_channels": 4},
    {"quantizer": "rq", "quantizer_options": {"code_depth": "4"}},
    {"quantizer": "lc", "quantizer_options": {"feature_dim": 2**24 - 1}},
    {"quantizer": ["arc"]},
    {"quantizer_options": [1]},
    {"quantizer_options": {"beta": {}}},
    {"quantizer_options": {"nothing": 1}},
    {"an_unknown_option": 1},
    {"_class_name": "UNet2DModel"},
    {"_class_name": None},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
]


@pytest.mark.parametrize("options", SIZES + OPTIONS, ids=str)
def test_other_sizes_and_options_than_the_weights_are_refused(folder, options):
    change(folder / "ldm" / "vqvae" / "config.json", **options)
    refused(VQTokenizer.from_pretrained, folder / "ldm" / "vqvae", str(folder / "ldm" / "vqvae"))


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"5", b"null", b"{", b"\xff\xfe"],
    ids=lambda text: f"{text!r:.20}",
)
def test_what_is_no_config_is_refused(folder, text):
    for place, load in MODELS[:4]:
        (folder / place / "config.json").write_bytes(text)
        refused(load, folder / place, "config.json")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        content = (folder / "ldm" / name).read_bytes()
        shutil.rmtree(folder / "ldm" / "unet", ignore_errors=True)
        (folder / "ldm" / name).write_bytes(text)
        with pytest.raises(ValueError):
            ArcVQLDMPipeline.from_pretrained(folder / "ldm", unet=make_unet((4, 4, 4), 2, 32, (1,), num_blocks=1))
        (folder / "ldm" / name).write_bytes(content)


@pytest.mark.parametrize(
    ("place", "load", "options"),
    [
        (*MODELS[1], {"num_layers": 3}),
        (*MODELS[1], {"num_layers": 0}),
        (*MODELS[1], {"grid_size": 4}),
        (*MODELS[1], {"codebook_size": 10**12}),
        (*MODELS[1], {"dropout": "much"}),
        (*MODELS[1], {"dropout": 7.0}),
        (*MODELS[1], {"label_dropout": 0.5}),
        (*MODELS[2], {"layers_per_block": 3}),
        (*MODELS[2], {"block_out_channels": [32, 32]}),
        (*MODELS[2], {"down_block_types": ["os.system"]}),
        (*MODELS[2], {"num_class_embeds": None}),
        (*MODELS[2], {"num_class_embeds": 10**12}),
        (*MODELS[2], {"act_fn": 5}),
        (*MODELS[2], {"norm_num_groups": 0}),
        (*MODELS[3], {"head_channels": 0}),
        (*MODELS[3], {"class_embedding_dim": 10**9}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_other_configs_of_priors_than_the_weights_are_refused(folder, place, load, options):
    change(folder / place / "config.json", **options)
    refused(load, folder / place, str(folder))


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": -5},
        {"num_train_timesteps": None},
        {"beta_start": "low"},
        {"beta_schedule": "none"},
        {"trained_betas": "x"},
        {"trained_betas": [[1], 2]},
        {"_class_name": 5},
    ],
    ids=str,
)
def test_a_scheduler_that_cannot_work_is_refused(folder, options):
    change(folder / "ldm" / "scheduler" / "scheduler_config.json", **options)
    refused(ArcVQLDMPipeline.from_pretrained, folder / "ldm", "scheduler_config.json")


INDICES = [
    {"vqvae": ["os", "system"]},
    {"vqvae": ["trap", "VQTokenizer"]},
    {"vqvae": ["tokenizer.model", "TokenizerOutput"]},
    {"vqvae": [None, None]},
    {"vqvae": 5},
    {"unet": ["diffusers", "AutoencoderKL"]},
    {"unet": ["trap", "UNet2DModel"]},
    {"scheduler": ["diffusers", "UNet2DModel"]},
    {"scheduler": ["diffusers", "__class__"]},
    {"scheduler": ["trap", "DDIMScheduler"]},
    {"scheduler": ["diffusers", ["DDIMScheduler"]]},
    {"extra": ["trap", "Trap"]},
    {"../ldm": ["trap", "Trap"]},
    {"_class_name": "StableDiffusionPipeline"},
    {"_class_name": ["trap", "ArcVQLDMPipeline"]},
    {"id2label": None},
    {"id2label": ["a", "b"]},
    {"id2label": {"0": "a"}},
    {"id2label": {"x": "a", "1": "b"}},
    {"latent_scale": 0},
    {"latent_scale": "1"},
    {"latent_scale": True},
    {"latent_scale": None},
]


@pytest.mark.parametrize("options", INDICES, ids=str)
def test_an_index_that_names_something_else_imports_nothing(folder, tmp_path, monkeypatch, options):
    trace = tmp_path / "executed"
    code = f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
    (tmp_path / "trap.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    change(folder / "ldm" / "model_index.json", **options)
    for load in (ArcVQLDMPipeline.from_pretrained, load_pipeline):
        with pytest.raises((ValueError, TypeError)) as error:
            load(str(folder / "ldm"))
        assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    assert not trace.exists() and "trap" not in sys.modules


@pytest.mark.parametrize("missing", ["vqvae", "unet", "scheduler", "id2label", "latent_scale"])
def test_an_index_without_a_part_is_refused(folder, missing):
    index = folder / "ldm" / "model_index.json"
    config = json.loads(index.read_text())
    del config[missing]
    index.write_text(json.dumps(config))
    refused(ArcVQLDMPipeline.from_pretrained, folder / "ldm", missing)


@pytest.mark.parametrize("name", ["None.py", "vqvae/tokenizer.model.py", "unet/diffusers.py", "ArcVQLDMPipeline.py"])
def test_code_in_a_folder_is_refused_and_never_run(folder, tmp_path, name):
    trace = tmp_path / "executed"
    (folder / "ldm" / name).write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\n")
    for options in ({}, {"trust_remote_code": True}):
        refused(lambda place, options=options: ArcVQLDMPipeline.from_pretrained(place, **options), folder / "ldm", name)
    assert not trace.exists()


def test_a_missing_component_is_refused_unless_it_is_passed(folder):
    shutil.move(folder / "ldm" / "unet", folder / "unet")
    refused(ArcVQLDMPipeline.from_pretrained, folder / "ldm", "has no folder unet")
    unet = UNet2DModel.from_pretrained(folder / "unet")
    assert ArcVQLDMPipeline.from_pretrained(folder / "ldm", unet=unet).unet is unet


def test_a_variant_is_loaded_and_one_that_is_not_there_is_refused(folder, tmp_path):
    pipe = ArcVQLDMPipeline.from_pretrained(folder / "ldm")
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    (tmp_path / "half" / "vqvae" / "README.txt").write_text("beside it")
    loaded = ArcVQLDMPipeline.from_pretrained(tmp_path / "half", variant="fp16", dtype=torch.float16)
    assert loaded.unet.dtype == torch.float16
    for place in ("half", "folders/ldm"):
        with pytest.raises(ValueError):
            ArcVQLDMPipeline.from_pretrained(tmp_path / place, variant="int4")
    (tmp_path / "half" / "vqvae" / "README").write_text("a name that diffusers trips over")
    with pytest.raises(ValueError, match="half cannot be loaded"):
        ArcVQLDMPipeline.from_pretrained(tmp_path / "half", variant="fp16")


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_a_pipeline_of_another_scheduler_is_saved_and_loaded(folder, tmp_path, scheduler):
    pipe = ArcVQLDMPipeline.from_pretrained(folder / "ldm")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "saved")
    assert type(ArcVQLDMPipeline.from_pretrained(tmp_path / "saved").scheduler) is scheduler


def test_every_quantizer_is_saved_and_loaded_with_all_of_its_options(tmp_path):
    for name in QUANTIZERS:
        options = {"network_options": {"strided_layers": 1}} if name == "hvq" else {}
        model = VQTokenizer(1, 16, quantizer=name, codebook_size=8, codebook_dim=4, hidden_channels=8, **options)
        model.save_pretrained(tmp_path / name)
        VQTokenizer.from_pretrained(tmp_path / name)


PEAK = """
import resource, sys
from pathlib import Path
from tokenizer import VQTokenizer
from pipelines import ArcVQLDMPipeline
from diffusers import DDIMScheduler
place = Path(sys.argv[1])
for folder in sorted(place.iterdir()):
    kind = ArcVQLDMPipeline if (folder / "model_index.json").exists() else VQTokenizer
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        kind.from_pretrained(folder)
        print(folder.name, "loaded")
    except ValueError:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(folder.name, "refused", round(grown))
"""


@pytest.mark.robustness
def test_misshapen_weights_are_refused_before_memory_is_taken(originals, tmp_path):
    shutil.copytree(originals / "ldm" / "vqvae", tmp_path / "folders" / "00 whole")
    changed = [("config.json", {"hidden_channels": 10**5}), ("config.json", {"codebook_size": 10**9})]
    for index, (part, options) in enumerate(changed):
        copy = shutil.copytree(originals / "ldm" / "vqvae", tmp_path / "folders" / f"1 tokenizer {index}")
        change(copy / part, **options)
    changed = [("unet/config.json", {"num_class_embeds": 10**9}), ("vqvae/config.json", {"codebook_size": 10**9})]
    for index, (part, options) in enumerate(changed):
        copy = shutil.copytree(originals / "ldm", tmp_path / "folders" / f"2 pipeline {index}")
        change(copy / part, **options)
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", PEAK, str(tmp_path / "folders")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "00 whole loaded" and len(lines) == 5
    for line in lines[1:]:
        assert " refused " in line and int(line.split()[-1]) < 150, line  # MiB


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_codebook_file_is_refused(tmp_path, content):
    quantizer = make_quantizer("lc", 8, 4, {"feature_dim": 6})
    file = tmp_path / "codebook.safetensors"
    file.write_bytes(content)
    refused(lambda place: load_codebook_file(quantizer, place), file, str(file))


def test_a_codebook_file_of_another_kind_is_refused(tmp_path):
    quantizer = make_quantizer("lc", 8, 4, {"feature_dim": 6})
    file = tmp_path / "codebook.safetensors"
    for table in (torch.zeros(8, 5), torch.full((8, 6), np.nan), torch.zeros(8, 6).int(), torch.zeros(8, 6).bfloat16()):
        save_codebook_file(table, file)
        refused(lambda place: load_codebook_file(quantizer, place), file, str(file))
    save_codebook_file(torch.zeros(8, 6), file)
    load_codebook_file(quantizer, file)
    file.unlink()
    os.mkfifo(file)
    refused(lambda place: load_codebook_file(quantizer, place), file, "is no file")


@pytest.mark.parametrize("names", [[1], 5, "ab", {"x": "a"}, {None: "a"}, {0: "a", 2: "b"}])
def test_names_that_are_no_mapping_of_ids_are_refused(names):
    with pytest.raises(ValueError, match="id2label"):
        check_id2label(names, 2)
