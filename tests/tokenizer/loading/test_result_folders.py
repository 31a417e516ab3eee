"""A run folder stands for the result in it; a folder that holds something else is told as that."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from pipeline_calls import latent_diffusion, pixelcnn, quiet, sample
from places import PYTHONPATH
from safetensors.torch import load_file, save_file

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from tokenizer import VQTokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three run folders as the trainings leave them, and one whose training is not complete."""
    place = tmp_path_factory.mktemp("home") / "runs"
    latent_diffusion().save_pretrained(place / "ldm" / "pipeline")
    pixels = pixelcnn()
    pixels.save_pretrained(place / "pixelcnn" / "pipeline")
    pixels.vqvae.save_pretrained(place / "tokenizer" / "tokenizer")
    for name in ("ldm", "pixelcnn", "tokenizer", "unfinished"):
        (place / name / "checkpoints" / "step-20").mkdir(parents=True)
        (place / name / "config.yaml").write_text("run: {}\n")
    (place / "nothing").mkdir()
    return place


@pytest.fixture
def copies(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "runs")


def message(kind, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        kind.from_pretrained(*args, **kwargs)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
    return str(error.value)


KINDS = [("ldm", "pipeline", ArcVQLDMPipeline), ("pixelcnn", "pipeline", ArcVQPixelCNNPipeline)]
KINDS += [("tokenizer", "tokenizer", VQTokenizer)]


@pytest.mark.parametrize(("run", "result", "kind"), KINDS)
def test_a_run_folder_stands_for_its_result(runs, monkeypatch, run, result, kind):
    monkeypatch.chdir(runs.parent)
    whole = kind.from_pretrained(runs / run / result)
    part = whole if kind is VQTokenizer else whole.vqvae
    for folder in (runs / run, f"runs/{run}", f"runs/{run}/", f"./runs/{run}", f"runs/{run}/{result}"):
        found = kind.from_pretrained(folder)
        assert type(found) is kind
        other = found if kind is VQTokenizer else found.vqvae
        weights = part.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(("run", "result", "kind"), KINDS)
def test_another_kinds_folder_is_told_as_that(runs, run, result, kind):
    for _, _, other in KINDS:
        for folder in (runs / run, runs / run / result):
            if other is not kind:
                said = message(other, folder)
                assert kind.__name__ in said and other.__name__ in said and str(runs / run / result) in said


@pytest.mark.parametrize("kind", [kind for _, _, kind in KINDS])
def test_of_several_results_none_is_guessed(runs, kind):
    said = message(kind, runs)
    for place in ("ldm/pipeline", "pixelcnn/pipeline", "tokenizer/tokenizer"):
        assert str(runs / place) in said


@pytest.mark.parametrize("kind", [kind for _, _, kind in KINDS])
def test_a_folder_without_a_result_is_told_as_that(runs, kind):
    assert "training" in message(kind, runs / "unfinished")
    assert "nothing" in message(kind, runs / "nothing")
    assert "is a file" in message(kind, runs / "unfinished" / "config.yaml")


def test_a_part_of_a_pipeline_names_the_pipeline(runs):
    for part in ("unet", "scheduler"):
        said = message(ArcVQLDMPipeline, runs / "ldm" / "pipeline" / part)
        assert f"part of the ArcVQLDMPipeline in {runs / 'ldm' / 'pipeline'};" in said
    assert "UNet2DModel" in message(VQTokenizer, runs / "ldm" / "pipeline" / "unet")
    assert str(runs / "pixelcnn" / "pipeline") in message(PixelCNN, runs / "pixelcnn")
    assert str(runs / "ldm" / "pipeline" / "vqvae") in message(VQTokenizer, runs / "ldm", subfolder="vqvae")


def test_a_folders_own_result_comes_before_one_below_it(copies):
    pipeline = copies / "ldm" / "pipeline"
    shutil.copytree(copies / "pixelcnn" / "pipeline", pipeline / "pipeline")
    shutil.copytree(pipeline / "vqvae", pipeline / "vqvae" / "tokenizer")
    assert type(ArcVQLDMPipeline.from_pretrained(pipeline)) is ArcVQLDMPipeline
    assert Path(VQTokenizer.from_pretrained(pipeline / "vqvae").config._name_or_path) == pipeline / "vqvae"
    (pipeline / "model_index.json").write_text("{")  # nor is another taken where it is broken
    assert f"{pipeline / 'model_index.json'} is not valid JSON" in message(ArcVQLDMPipeline, pipeline)


@pytest.mark.parametrize("name", ["two\nlines", "", 5, ["a"], None])
def test_a_foreign_class_name_stays_out_of_the_message(copies, name):
    index = copies / "ldm" / "pipeline" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))
    message(ArcVQLDMPipeline, index.parent)
    message(VQTokenizer, index.parent)


# The second and third line are the README's.
DIFFUSERS_OWN = """
import sys, torch
import pipelines
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
for name, options in (("ldm", {"num_inference_steps": 3}), ("pixelcnn", {})):
    pipe = DiffusionPipeline.from_pretrained(f"runs/{name}/pipeline")
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    torch.save(pipe([0, 2], generator=generator, output_type="pt", **options).images, f"{sys.argv[1]}/{name}.pt")
    print(type(pipe).__name__, *pipe.class_names.values())
"""


@pytest.mark.slow
def test_diffusers_own_class_loads_a_pipeline_in_a_fresh_process(runs, tmp_path):
    command = [sys.executable, "-c", DIFFUSERS_OWN, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, cwd=runs.parent, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names = " tench goldfish hen"
    assert done.stdout.splitlines() == [f"ArcVQLDMPipeline{names}", f"ArcVQPixelCNNPipeline{names}"]
    for run, kind, options in (
        ("ldm", ArcVQLDMPipeline, {"num_inference_steps": 3}),
        ("pixelcnn", ArcVQPixelCNNPipeline, {}),
    ):
        expected = sample(quiet(kind.from_pretrained(runs / run)), (0, 2), (1, 2), **options)
        assert torch.equal(torch.load(tmp_path / f"{run}.pt"), expected)


def test_diffusers_own_class_reads_no_pickle_and_no_half_of_the_weights(copies):
    unet = copies / "ldm" / "pipeline" / "unet"
    file = unet / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    save_file({name: value for name, value in whole.items() if name != "conv_in.weight"}, file)
    assert "conv_in.weight missing" in message(DiffusionPipeline, unet.parent)
    torch.save(whole, unet / "diffusion_pytorch_model.bin")
    file.unlink()
    assert "only safetensors are read" in message(DiffusionPipeline, unet.parent)
    save_file(whole, file)
    loaded = DiffusionPipeline.from_pretrained(unet.parent)
    assert type(loaded.unet) is UNet2DModel and all(
        torch.equal(value, whole[name]) for name, value in loaded.unet.state_dict().items()
    )
    loaded.save_pretrained(copies / "again")
    assert json.loads((copies / "again" / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
