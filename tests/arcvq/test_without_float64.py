"""Sampling, measuring, encoding and training steps on a device that has no float64, as Apple's."""

import json
import shutil

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from no_float64 import DEVICE, HasNoFloat64, NoFloat64
from quantizer_cases import small_tokenizer

from arcvq.compute.devices import device_for
from arcvq.evaluation import command as evaluate
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.sampling import command as sample
from arcvq.sampling.reconstructions import reconstruct
from arcvq.training.latent_cache import LatentsConfig, encode_splits
from arcvq.training.reconstruction_loss import LossConfig, ReconstructionLoss
from arcvq.training.tokenizer_step import TokenizerUpdate
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from pipelines.metrics import codebook_geometry, distribution_metrics, pair_metrics
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet
from tokenizer.data import DataConfig, load_splits
from tokenizer.losses.lpips import WeightFiles


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working directory with a tokenizer and both pipelines, of random weights."""
    cwd = tmp_path_factory.mktemp("home")
    tokenizer = small_tokenizer("arc", codebook_size=32, image_size=32)
    names = {label: str(label) for label in range(10)}
    prior = PixelCNN(32, 10, tokenizer.code_shape, channels=8, num_layers=3, head_channels=16)
    unet = make_unet(tokenizer.latent_shape, 10, 16, (1,), num_blocks=1, head_channels=8)
    tokenizer.save_pretrained(cwd / "tokenizer")
    ArcVQPixelCNNPipeline(tokenizer, prior, names).save_pretrained(cwd / "pixelcnn")
    ArcVQLDMPipeline(tokenizer, unet, make_scheduler(), names, 1.0).save_pretrained(cwd / "ldm")
    return cwd


@pytest.fixture
def on_cpu(home, monkeypatch):
    """The commands in the working directory, on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True)
    monkeypatch.chdir(home)


@pytest.fixture
def to_device(on_cpu, monkeypatch):
    """A function that enters the device: all that accelerate places lies there from then on."""

    def one_thread(chunks, write, make_worker, inputs):  # torch's modes are a thread's own
        measure = make_worker()
        for chunk, taken in zip(chunks, inputs(chunks), strict=True):
            write(chunk, measure(chunk, *taken))
            yield chunk

    def enter():
        monkeypatch.setattr("arcvq.compute.resumable.on_gpu", one_thread)
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        monkeypatch.setitem(PartialState._shared_state, "device", DEVICE)
        return NoFloat64()

    yield enter
    monkeypatch.undo()  # later it would put the device back into a state that is none
    AcceleratorState._reset_state(reset_partial_state=True)


def written(main, result, *arguments):
    main([*map(str, arguments)])
    return json.loads(result.read_text())


CASES = {
    "reconstruction": ("tokenizer", ()),
    "generation of pixelcnn": ("pixelcnn", ("--batch_size=10",)),
    "generation of ldm": ("ldm", ("--batch_size=10", "--sampling.num_inference_steps=2")),
    "generation in float32": ("pixelcnn", ("--batch_size=10", "--dtype=float32")),
}


@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_gives_the_numbers_of_a_cpu_and_says_what_it_computed_there(
    case, home, to_device, classifier_cache, tmp_path
):
    task, (folder, options) = case.split()[0], CASES[case]
    cache = shutil.copytree(classifier_cache, tmp_path / "cache")
    options = (task, folder, "--num_images=10", f"--cache_dir={cache}", *options)
    options += ("--extractor=digits-classifier",)
    results = []
    for place in ("cpu", "mps"):
        output = home / f"{case}-{place}"
        with to_device() if place == "mps" else torch.no_grad():
            result = output / f"{task}-digits-classifier.json"
            results.append(written(evaluate.main, result, *options, f"--output={output}"))
    on_cpu, on_device = results
    # Batches of other sizes are rounded otherwise by some processors, in float32 far above float64's rounding.
    tolerance = 1e-6 if "float32" in case else 1e-9
    assert on_device["numbers"] == pytest.approx(on_cpu["numbers"], rel=tolerance)
    assert "float64" in on_device["protocol"]["on_cpu"] and "on_cpu" not in on_cpu["protocol"]


@pytest.mark.parametrize("folder", ["pixelcnn", "ldm"])
def test_samples_are_those_of_a_cpu(folder, home, to_device):
    images = []
    for place in ("cpu", "mps"):
        output = home / f"{folder}-{place}"
        steps = ["--sampling.num_inference_steps=2"] if folder == "ldm" else ["--sampling.top_p=0.9"]
        with to_device() if place == "mps" else torch.no_grad():
            sample.main([folder, "--num_images=6", "--batch_size=3", f"--output={output}", *steps])
        images.append([file.read_bytes() for file in sorted((output / "images").iterdir())])
    assert images[0] == images[1] and len(images[0]) == 6


def test_encoded_data_are_those_of_a_cpu(tmp_path, on_cpu, to_device):
    data, seen = DataConfig(image_size=16), []
    for place in ("cpu", "mps"):
        with to_device() if place == "mps" else torch.no_grad():
            tokenizer = small_tokenizer("arc")
            device = PartialState().device
            encoded = encode_splits(tokenizer, load_splits(data), data, LatentsConfig(), tmp_path / place, device)
            seen.append(encoded.train[[0, 700, 1400]] | {"scale": torch.tensor(encoded.latent_scale)})
    for name, values in seen[0].items():
        assert torch.equal(values, seen[1][name]), name


def test_a_step_and_a_preview_of_a_tokenizer_are_those_of_a_cpu(tmp_path, to_device):
    images = 2 * torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    found = []
    for place in ("cpu", "mps"):
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState(cpu=True)
        with to_device() if place == "mps" else torch.enable_grad():
            run = Run(RunConfig(place, str(tmp_path)), OptimConfig(max_steps=10, lr=1e-2), {"run": {}})
            trained = run.add_module(small_tokenizer("arc").to(run.device), "model")
            held_out = [{"images": image} for image in images]
            numbers = reconstruct(trained.module, _Listed(held_out))[2].result()
            trained.begin(1e-2)
            loss = ReconstructionLoss(LossConfig(), WeightFiles(), 16, run.device)
            output = TokenizerUpdate(run.accelerator, trained, loss)((images.to(run.device),), 0)
            found.append((output.terms.by_name()["loss"].item(), bool(output.updated), numbers))
            assert run.device.type == place
    assert found[1] == (pytest.approx(found[0][0]), True, found[0][2])


class _Listed(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, indices):
        return torch.utils.data.default_collate([self.items[index] for index in indices])


def test_metrics_of_tensors_on_the_device_are_float64_of_the_cpu():
    pair = [torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8) for _ in range(2)]
    features, logits, table = torch.rand(40, 5), torch.rand(40, 4), torch.rand(7, 3)
    expected = pair_metrics(*pair), distribution_metrics(features, logits, features + 1), codebook_geometry(table, 1.0)
    with NoFloat64():
        pair, features, logits, table = ([a.to("mps") for a in pair], *(a.to("mps") for a in (features, logits, table)))
        seen = pair_metrics(*pair), distribution_metrics(features, logits, features + 1), codebook_geometry(table, 1.0)
    for name, values in expected[0].items():
        assert torch.equal(values, seen[0][name]) and seen[0][name].dtype == torch.float64
    assert seen[1:] == expected[1:]


def test_float64_on_the_device_would_be_seen():
    assert device_for(torch.float64, DEVICE).type == "cpu" and device_for(torch.float32, DEVICE) == DEVICE
    with NoFloat64():
        values = torch.rand(3).to("mps")
        assert values.device == DEVICE and values.sum().item() == values.cpu().sum().item()
        refused = [
            values.double,
            lambda: values.to("cpu", torch.float64),
            lambda: torch.ones(2, dtype=torch.float64, device=values.device),
            lambda: torch.ones(2, dtype=torch.float64).to("mps"),
            lambda: values.mean(dtype=torch.float64),
        ]
        for call in refused:
            with pytest.raises(HasNoFloat64):
                call()
        with pytest.raises(RuntimeError, match="mixes"):
            values + torch.rand(3)
