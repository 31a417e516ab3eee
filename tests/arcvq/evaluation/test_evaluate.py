"""evaluate.py as a user starts it: on several processes, killed and started again, on models, PNG files and npz."""

import contextlib
import json
import re
import shutil
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet

from arcvq.compute.resumable import ResumableMap
from arcvq.evaluation.command import main
from arcvq.faults import forked_process
from pipelines import ArcVQPixelCNNPipeline
from pipelines.metrics.digits import DigitExtractor, digit_classifier
from pipelines.metrics.extractors import EXTRACTORS
from priors import PixelCNN
from tokenizer import VQTokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory, classifier_cache):
    """A working directory with a tokenizer and a pipeline of random weights, whose images are not all alike."""
    cwd = tmp_path_factory.mktemp("home")
    for cache in ("runs/cache", "cache-2", "cache-3", "originals", "fresh"):
        shutil.copytree(classifier_cache, cwd / cache)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        in_channels=1, codebook_size=32, codebook_dim=4, hidden_channels=8, network_options={"residual_channels": 4}
    )
    prior = PixelCNN(32, 10, (8, 8), channels=8, num_layers=3, head_channels=16)
    with torch.no_grad():
        prior.head[-1].weight.mul_(20)
        tokenizer.decoder.conv_out.weight.mul_(20)
    tokenizer.save_pretrained(cwd / "tokenizer")
    ArcVQPixelCNNPipeline(tokenizer, prior, {label: str(label) for label in range(10)}).save_pretrained(
        cwd / "pipeline"
    )
    return cwd


def command(*options):
    return [sys.executable, str(ROOT / "scripts" / "evaluate.py"), *map(str, options)]


def evaluated(home, output, task, *options, name=None, processes=None):
    """Evaluates into `output`, in this process or in processes of their own, and returns what was written."""
    options = (task, *options, "--output", output)
    if processes is None:
        with contextlib.chdir(home):
            main([*map(str, options)])
    else:
        done = forked_process.run(command(*options), home, processes=processes)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((home / output / f"{name or task}.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As conftest.py has it: the script would take all cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvq.compute.process.use_all_cores", lambda: None)
        yield


GENERATION = ("generation", "pipeline", "--num_images", 50, "--batch_size", 10)


@pytest.fixture(scope="module")
def reconstruction(home):
    return evaluated(home, "alone-r", "reconstruction", "tokenizer")


@pytest.fixture(scope="module")
def generation(home):
    return evaluated(home, "alone-g", *GENERATION, "--save_images", "npz")


def test_every_number_carries_what_it_takes_to_compare_it(reconstruction, generation):
    for result in (reconstruction, generation):
        protocol = result["protocol"]
        assert {"commit", "versions", "command", "device", "quantisation", "storage"} <= set(protocol)
        assert {"torch", "torchvision", "diffusers", "torch-fidelity", "pillow", "numpy"} <= set(protocol["versions"])
        assert len(protocol["fingerprint"]) == 64
        extractor = protocol["extractor"]
        assert extractor["name"] == "digits-classifier" and extractor["dtype"] == "float64"
        assert len(extractor["sha256"]) == 64 and "127.5" in extractor["input"]
    assert reconstruction["protocol"]["protocol"] == "rfid" and generation["protocol"]["protocol"] == "torch-fidelity"
    assert generation["protocol"]["samples_per_class"] == [5, 5]
    facts = {"seed": 0, "labels": "balanced", "classes": 10, "samples": 50, "asked": 50_000, "images": 360}
    assert {name: generation["protocol"][name] for name in facts} == facts
    assert len(generation["protocol"]["pipeline"]) == len(reconstruction["protocol"]["tokenizer"]) == 64


def test_image_i_is_that_of_label_i_and_seed_i(home, generation):
    pipeline = ArcVQPixelCNNPipeline.from_pretrained(home / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    with np.load(home / "alone-g" / "samples.npz", allow_pickle=False) as arrays:
        for index in (0, 9, 10, 37):
            generator = [torch.Generator().manual_seed(index)]
            image = pipeline([index % 10], generator=generator, output_type="pt").images[0]
            expected = (image * 255).round().to(torch.int64).expand(3, -1, -1).permute(1, 2, 0).numpy()
            assert (
                np.abs(arrays["arr_0"][index].astype(np.int64) - expected).max() <= 1
            )  # another batch rounds otherwise


def test_reconstructions_are_compared_with_their_originals(reconstruction):
    assert reconstruction["numbers"]["frechet_distance[digits-classifier]"] > 1  # of a random tokenizer


def test_fewer_samples_than_the_protocol_asks_for_are_marked(home, reconstruction, generation):
    of_samples = {name for name in generation["numbers"] if "digits-classifier" in name and "accuracy" not in name}
    assert of_samples and all(name.endswith("]@50") for name in of_samples)
    assert not any("@" in name for name in reconstruction["numbers"])
    part = evaluated(home, "part", "reconstruction", "tokenizer", "--num_images", 30)
    assert {"psnr@30", "ssim@30", "l1@30", "usage@30"} <= set(part["numbers"])


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_give_the_numbers_of_one(home, reconstruction, generation, processes):
    for alone, arguments in ((reconstruction, ("reconstruction", "tokenizer")), (generation, GENERATION)):
        cache = ("--cache_dir", f"cache-{processes}")  # so that the reference is shared out, too
        found = evaluated(home, f"{arguments[0]}-{processes}", *arguments, *cache, processes=processes)
        assert found["numbers"].keys() == alone["numbers"].keys()
        for name, value in alone["numbers"].items():
            assert found["numbers"][name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def mark_features(file):
    """Other features in a chunk that says of itself that it is whole."""
    values = load_file(file)
    with safe_open(file, "pt") as chunk:
        start, stop, key = re.fullmatch(r"(\d+)-(\d+) of (\w+): \w+", chunk.metadata()["chunk"]).groups()
    values["features"] += 1
    save_file(values, file, ResumableMap._origin(SimpleNamespace(_key=key), range(int(start), int(stop)), values))


def test_a_killed_evaluation_goes_on_and_gives_the_same_number(home, generation):
    arguments = ("--output", "killed", "--save_images", "png")
    process = forked_process.PreloadedProcess(command(*GENERATION, *arguments), home)
    deadline = time.monotonic() + 120
    while len(there := sorted((home / "killed").glob("samples-*/*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (home / "killed" / "generation.json").exists()
    # What was finished is used and not made again: marked features come back in the numbers.
    mark_features(there[0])
    marked = evaluated(home, "killed", *GENERATION, *arguments[2:])["numbers"]
    distance = "frechet_distance[digits-classifier]@50"
    assert marked[distance] != pytest.approx(generation["numbers"][distance], rel=1e-6)
    assert len(list((home / "killed" / "images").iterdir())) == 50
    assert not list((home / "killed").glob("samples-*"))

    process = forked_process.PreloadedProcess(command(*GENERATION, "--output", "again"), home)
    while not list((home / "again").glob("samples-*/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline + 120
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert evaluated(home, "again", *GENERATION)["numbers"] == generation["numbers"]


def test_kept_samples_give_the_numbers_of_the_pipeline(home, generation):
    expected = {name: value for name, value in generation["numbers"].items() if "accuracy" not in name}
    samples = home / "alone-g" / "samples.npz"
    with np.load(samples, allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (50, 32, 32, 3) and arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [index % 10 for index in range(50)]
        folder = home / "kept"
        folder.mkdir()
        for index, pixels in enumerate(arrays["arr_0"]):
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    for source in (samples, folder):
        found = evaluated(home, f"kept-{source.suffix}", "generation", source)
        for name, value in expected.items():
            assert found["numbers"][name] == pytest.approx(value, rel=1e-9), name


def test_adm_compares_with_a_file_of_statistics(home):
    name = "digits-train-digits-classifier"
    evaluated(home, "statistics", "statistics", "--reference", "train", name=name)
    file = home / "statistics" / f"{name}.npz"
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["mu"].shape == (64,) and arrays["sigma"].shape == (64, 64) and len(arrays["arr_0"]) == 1437
    against_split = evaluated(home, "split", *GENERATION, "--reference", "train", name="generation-train")
    against_file = evaluated(home, "file", *GENERATION, "--reference", file, name=f"generation-{name}")
    assert against_file["protocol"]["protocol"] == "adm" and len(against_file["protocol"]["reference_sha256"]) == 64
    for name, value in against_split["numbers"].items():
        assert against_file["numbers"][name] == pytest.approx(value, rel=1e-9), name


def test_official_jpeg_is_told_apart_by_name_and_by_value(home, reconstruction):
    name = "reconstruction-official_jpeg"
    official = evaluated(home, "jpeg", "reconstruction", "tokenizer", "--protocol", "official_jpeg", name=name)
    assert official["protocol"]["storage"] == "JPEG, quality 75"
    assert official["protocol"]["quantisation"] == "truncate"
    for metric in ("psnr", "ssim", "l1"):
        assert metric not in official["numbers"]
        assert official["numbers"][f"{metric}[official_jpeg]"] != reconstruction["numbers"][metric]
    assert "frechet_distance[digits-classifier,official_jpeg]" in official["numbers"]
    assert official["numbers"]["usage"] == reconstruction["numbers"]["usage"]


def test_reconstructions_in_files_are_measured_against_the_split(home):
    name = "digits-test-digits-classifier"
    written = evaluated(home, "statistics-test", "statistics", "--reference", "test", name=name)
    assert written["numbers"]["images"] == 360
    file = home / "statistics-test" / f"{name}.npz"  # its images are the split itself
    numbers = evaluated(home, "itself", "reconstruction", file, "--data.channels", 3)["numbers"]
    assert numbers["psnr"] == "inf" and numbers["l1"] == 0
    assert numbers["ssim"] == pytest.approx(1) and numbers["frechet_distance[digits-classifier]"] < 1e-9
    assert "usage" not in numbers


@pytest.fixture(scope="module")
def bad(home):
    """Inputs that cannot be measured."""
    torch.manual_seed(0)
    weights = {f"features.{name}": value for name, value in alexnet().features.state_dict().items()}
    save_file(weights, home / "other.safetensors")
    torch.save({}, home / "inception.pth")
    for name in ("empty", "sizes", "broken"):
        (home / name).mkdir()
    for index in range(12):
        Image.new("L", (32, 32), index).save(home / "broken" / f"{index:02d}.png")
        Image.new("L", (32, 32 + index // 11), index).save(home / "sizes" / f"{index:02d}.png")
    whole = (home / "broken" / "07.png").read_bytes()
    (home / "broken" / "07.png").write_bytes(whole[:50])
    tokenizer = VQTokenizer.from_pretrained(home / "tokenizer")
    with torch.no_grad():
        tokenizer.decoder.conv_out.bias.fill_(torch.nan)
    tokenizer.save_pretrained(home / "nan")
    np.savez(home / "other.npz", mu=np.zeros(64), sigma=np.eye(64), sha256="0" * 64)
    return home


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("generation", "pipeline", "--extractor", "inception"),
            "weights-inception-2015-12-05-6726825d.pth is not there",
        ),
        (
            ("generation", "pipeline", "--extractor", "inception", "--weights.inception", "inception.pth"),
            "another file",
        ),
        (("generation", "pipeline", "--extractor", "alexnet", "--weights.alexnet", "other.safetensors"), "SHA-256"),
        (("reconstruction", "tokenizer", "--lpips", "alex", "--weights.alexnet", "none.pth"), "none.pth is not there"),
        (("generation", "pipeline", "--extractor", "dinov2", "--dinov2", "empty"), "no DINOv2 weights in 'empty'"),
        (("generation", "pipeline", "--extractor", "vgg"), "no extractor 'vgg'; take one of inception, alexnet"),
        (("generation", "pipeline", "--resize", 64), "reads images of 32 pixels, not of 64 pixels"),
        (
            ("reconstruction", "tokenizer", "--data.image_size", 16, "--resize", 64),
            "--resize 64 is that of an extractor",
        ),
        (("generation", "broken"), "07.png cannot be decoded"),
        (("generation", "sizes"), "holds images of several sizes: 00.png"),
        (("generation", "empty"), "has no image files: it is empty"),
        (("reconstruction", "broken"), "broken holds (12, 1, 32, 32) images"),
        (("reconstruction", "nan"), "hold NaN or infinity; the model diverged"),
        (("generation", "pipeline", "--reference", "none.npz"), "no file of statistics 'none.npz'"),
        (
            ("generation", "pipeline", "--reference", "other.npz"),
            "another extractor: its sha256 is '00000000",
        ),
        (("generation", "pipeline", "--protocol", "adm"), "not with --reference test"),
        (("generation", "pipeline", "--protocol", "rfid"), "protocol rfid is none of generation"),
        (("generation", "pipeline", "--num_images", 5), "need 10 images or more, got num_images 5"),
        (("reconstruction", "tokenizer", "--data.on_bad_image", "skip"), "would measure some images twice"),
        (("reconstruction", "tokenizer", "--num_images", 361), "num_images is 361, but there are 360 images"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_measured_is_one_clear_line(bad, arguments, text, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(bad / "torch"))
    monkeypatch.chdir(bad)
    with pytest.raises(ValueError) as error:
        main([*map(str, arguments), "--output", "refused"])
    message = " ".join(str(error.value).split())  # as run_script prints it
    assert text in message and len(message) < 500
    assert not (bad / "refused" / f"{arguments[0]}.json").exists()


def test_a_broken_file_on_two_processes_is_an_error_and_no_wait(bad):
    done = forked_process.run(command("generation", "broken"), bad, processes=2)
    assert done.returncode != 0
    # The other process adds that it lost it.
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "07.png cannot be decoded" in lines[0]


def test_kept_images_are_never_written_over(home, monkeypatch):
    (home / "there" / "images").mkdir(parents=True)
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match="images is there, and not by this command; remove it, or name another"):
        main([*map(str, GENERATION), "--output", "there", "--save_images", "png"])


def test_nan_samples_are_an_error_and_no_number(home, monkeypatch):
    pipeline = ArcVQPixelCNNPipeline.from_pretrained(home / "pipeline")
    with torch.no_grad():
        pipeline.vqvae.decoder.conv_out.bias.fill_(torch.nan)
    pipeline.save_pretrained(home / "nan-pipeline")
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match="samples of seeds 0 and on hold NaN or infinity"):
        main(["generation", "nan-pipeline", "--num_images", "20", "--output", "nan-samples"])
    assert not (home / "nan-samples" / "generation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("reconstruction", "tokenizer", "--labels", "random"), "--labels random"),
        (("reconstruction", "tokenizer", "--sampling.eta", "1"), "--sampling.eta 1"),
        (("reconstruction", "tokenizer", "--reference", "train"), "--reference train"),
        (("generation", "pipeline", "--lpips", "alex"), "--lpips alex"),
        (("generation", "pngs", "--seed", "7"), "--seed 7"),
        (("generation", "pngs", "--save_images", "npz"), "--save_images npz"),
        (("statistics", "--protocol", "adm"), "--protocol adm"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(home, arguments, option, monkeypatch):
    (home / "pngs").mkdir(exist_ok=True)
    Image.new("L", (32, 32)).save(home / "pngs" / "0.png")
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match=f"{option}.* changes nothing of {arguments[0]}"):
        main([*arguments, "--output", "refused"])


def test_a_folder_of_images_can_be_evaluated_twice(home):
    (home / "twice").mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(256, size=(32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(home / "twice" / f"{index:02d}.png")
    file = home / "twice-evaluation" / "generation.json"
    with contextlib.chdir(home):
        main(["generation", "twice"])
        first = json.loads(file.read_text())["numbers"]
        main(["generation", "twice"])
        assert json.loads(file.read_text())["numbers"] == first and first["samples"] == 20
        main(["generation", "twice", "--num_images", "12"])
    assert json.loads(file.read_text())["numbers"]["samples"] == 12


def test_unequal_classes_are_marked_under_adm(home):
    name = "digits-test-digits-classifier"
    file = home / "statistics-adm" / f"{name}.npz"
    evaluated(home, "statistics-adm", "statistics", "--reference", "test", name=name)
    arguments = ("--reference", file, "--protocol", "adm", "--labels", "random")
    found = evaluated(home, "unequal", *GENERATION, *arguments, name=f"generation-adm-{name}")
    assert "frechet_distance[digits-classifier,unbalanced]@50" in found["numbers"]


@pytest.mark.slow
def test_features_of_the_originals_are_kept_for_the_next_tokenizer_and_no_other_protocol(home, reconstruction):
    def distance(output, protocol="rfid"):
        options = ("--cache_dir", "originals", "--protocol", protocol)
        found = evaluated(home, output, "reconstruction", "tokenizer", *options, name=f"reconstruction-{protocol}")
        return next(value for name, value in found["numbers"].items() if name.startswith("frechet_distance"))

    first = distance("first-r")
    assert first == reconstruction["numbers"]["frechet_distance[digits-classifier]"]
    (chunks,) = (home / "originals").glob("features-*")
    jpeg = distance("jpeg-r", "official_jpeg")
    file = min(chunks.glob("*.safetensors"))  # marked: what is kept comes back in the number
    mark_features(file)
    assert distance("second-r") != pytest.approx(first, rel=1e-6)
    assert distance("jpeg-again", "official_jpeg") == jpeg


def test_features_of_another_layer_are_never_taken_from_the_cache(home, monkeypatch):
    """The same file of weights, size and input: the class tells the two apart."""

    class Half(DigitExtractor):
        def forward(self, pixels):
            features, logits = super().forward(pixels)
            return features[:, :32], logits

    monkeypatch.setitem(EXTRACTORS, "half", lambda config: Half(digit_classifier(config.cache_dir)))
    evaluated(home, "whole", *GENERATION)
    found = evaluated(home, "half", *GENERATION, "--extractor", "half", name="generation-half")
    again = evaluated(
        home, "half-2", *GENERATION, "--extractor", "half", "--cache_dir", "fresh", name="generation-half"
    )
    assert found["numbers"] == pytest.approx(again["numbers"], rel=1e-9)
