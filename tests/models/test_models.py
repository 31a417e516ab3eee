"""Each folder in models/, and such folders made here: the weights do what the card says, in a copy elsewhere."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finished_runs import write_run
from images import pixels
from places import HELPERS, PYTHONPATH, ROOT
from safetensors.torch import load_file, save_file

import pipelines
from arcvq.export.command import main
from arcvq.export.weights import weights_hashes
from pipelines.metrics import psnr, to_uint8
from tokenizer import VQTokenizer
from tokenizer.data.dataset import as_floats

MODELS = ROOT / "models"
REAL = sorted(card.parent.name for card in MODELS.glob("*/card.json"))
# Made here with random weights, so that the checks themselves are tried however many real models there are.
MADE = {
    "tokenizer": (),
    "ldm": ("--evaluate", "generation --num_images 20 --sampling.num_inference_steps 2"),
    "pixelcnn": ("--evaluate", "generation --num_images 20"),
}
# What evaluate and sample write into such a folder belongs to whoever called them.
NOT_PUBLISHED = re.compile(r"^(evaluation|samples-\d+)/")
LIMIT = 25e6
# Another processor sums in another order: a code whose latent lies between two of them may be the other one.
OTHER_CODES = 0.005
OTHER_PSNR = 0.01
OTHER_PIXELS = 1.0

every_model = pytest.mark.parametrize("name", [*REAL, *MADE])


@pytest.fixture(scope="module")
def made(tmp_path_factory, classifier_cache):
    """A folder with models of random weights."""
    cwd = tmp_path_factory.mktemp("made")
    shutil.copytree(classifier_cache, cwd / "runs" / "cache")
    with contextlib.chdir(cwd), pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvq.compute.process.use_all_cores", lambda: None)
        for kind, options in MADE.items():
            main([str(write_run(cwd / "runs" / kind, kind)), "--output", f"models/{kind}", *options])
    return cwd / "models"


@pytest.fixture
def folder(name, made, tmp_path):
    """A copy of the model's folder, in a place without the repository."""
    source = (MODELS if name in REAL else made) / name
    return shutil.copytree(source, tmp_path / "models" / name, ignore=shutil.ignore_patterns("evaluation", "samples-*"))


def read_card(folder):
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


@torch.no_grad()
def differences(folder):
    """What a folder's model does otherwise than its examples say, by name, where it is beyond its limit."""
    card, limits = read_card(folder), {"codes": OTHER_CODES, "psnr": OTHER_PSNR, "pixels": OTHER_PIXELS}
    if card["kind"] == "pipeline":
        found = {"pixels": _pixel_difference(folder, card)}
    else:
        tokenizer = VQTokenizer.from_pretrained(folder)
        images = torch.stack([pixels(folder / example["image"]) for example in card["examples"]])
        found = {}
        if tokenizer.has_codes:
            codes = torch.tensor([example["codes"] for example in card["examples"]])
            found["codes"] = (tokenizer.encode_codes(as_floats(images)) != codes).double().mean().item()
            decoded = tokenizer.decode_codes(codes)  # the stored ones, so that a rounded code does not count twice
        else:
            decoded = tokenizer.decode(tokenizer.encode(as_floats(images)).latents).sample
        stored = torch.tensor([float(example["psnr"]) for example in card["examples"]])
        found["psnr"] = (psnr(images, to_uint8(decoded)) - stored).abs().max().item()
    return {name: value for name, value in found.items() if not value <= limits[name]}


def _pixel_difference(folder, card):
    """The mean difference between the stored samples and those that the pipeline makes now, in levels of 255."""
    pipeline = getattr(pipelines, card["class"]).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    samples = card["examples"]["images"]
    generators = [torch.Generator().manual_seed(sample["seed"]) for sample in samples]
    labels = [sample["class_label"] for sample in samples]
    images = pipeline(labels, generator=generators, output_type="pt", **card["examples"]["call"]).images
    stored = torch.stack([pixels(folder / sample["image"]) for sample in samples])
    return (255 * images - stored).abs().mean().item()


@every_model
def test_the_examples_are_what_the_weights_give(folder):
    examples = read_card(folder)["examples"]
    assert 8 <= len(examples["images"] if isinstance(examples, dict) else examples) <= 16
    assert differences(folder) == {}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(("coder", "seen"), [("encoder", "codes"), ("decoder", "psnr")])
def test_other_weights_are_seen(folder, name, coder, seen):
    part = folder if name == "tokenizer" else folder / "vqvae"
    file = part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[f"{coder}.conv_out.weight"][0] *= 3
    save_file(tensors, file, metadata={"format": "pt"})

    if name == "tokenizer":
        assert differences(folder).keys() == {seen}
    elif coder == "decoder":  # a prior samples without the encoder
        assert differences(folder).keys() == {"pixels"}
    assert weights_hashes(folder) != read_card(folder)["weights"]["sha256"]


@every_model
def test_the_weights_are_those_that_were_measured(folder):
    assert weights_hashes(folder) == read_card(folder)["weights"]["sha256"]
    assert read_card(folder)["evaluations"]


@every_model
def test_the_readme_s_numbers_are_those_of_the_card(folder):
    """In the same order, with the measurements one below the other."""
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \|$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    numbers = [pair for evaluation in read_card(folder)["evaluations"] for pair in evaluation["numbers"].items()]
    assert [name for name, _ in rows] == [name for name, _ in numbers] and numbers
    assert [float(value) for _, value in rows] == pytest.approx([float(value) for _, value in numbers], rel=1e-5)


@every_model
def test_the_head_of_the_readme_is_what_the_hub_reads(folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "diffusers") and card.data.pipeline_tag
    hub_id = read_card(folder)["data"]["hub_id"]
    assert card.data.datasets == ([hub_id] if hub_id else None)
    for target in re.findall(r"\]\(([^)#]+)\)", card.text):
        assert target.startswith("https://") or (folder / target).is_file(), target


@every_model
def test_only_safetensors_pictures_and_texts_without_places_of_a_machine(folder):
    for file in folder.rglob("*"):
        if file.is_dir():
            continue
        assert file.suffix in (".safetensors", ".json", ".yaml", ".md", ".png"), file
        if file.suffix in (".json", ".yaml", ".md"):
            text = file.read_text(encoding="utf-8")
            assert not re.findall(r"""(?:^|[\s"'=(])(?:/|~/|[A-Za-z]:\\)[\w.-]+""", text), file


def test_all_models_together_stay_small():
    files = [file for name in REAL for file in (MODELS / name).rglob("*") if file.is_file()]
    published = [file for file in files if not NOT_PUBLISHED.match("/".join(file.relative_to(MODELS).parts[1:]))]
    assert sum(file.stat().st_size for file in published) < LIMIT


@pytest.mark.slow
@every_model
def test_the_readme_s_python_runs_in_a_new_process_without_a_network(folder):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    worker = HELPERS / "offline_worker.py"
    done = subprocess.run(
        [sys.executable, str(worker)],
        input=code,
        cwd=folder.parents[1],
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    card = read_card(folder)
    if card["kind"] == "pipeline":
        stored = torch.stack([pixels(folder / sample["image"]) for sample in card["examples"]["images"][:2]])
        made = torch.stack([pixels(Path(file)) for file in sorted((folder.parents[1] / "out").iterdir())])
        assert (made.int() - stored.int()).abs().double().mean() < OTHER_PIXELS
