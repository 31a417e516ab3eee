"""sample.py as a user starts it: on several processes, killed and started again, in every format."""

import json
import shutil
import signal
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from quantizer_cases import small_tokenizer

from arcvq.compute import atomic_files
from arcvq.compute.resumable import ResumableMap
from arcvq.evaluation.image_sources import FolderImages, NpzImages
from arcvq.faults import forked_process
from arcvq.sampling import command as sample
from arcvq.sampling.writers import write_webdataset
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet
from tokenizer.data import DataConfig, load_images

STEPS = ("--sampling.num_inference_steps", 3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working directory with both pipelines, of random weights, whose images are not all alike."""
    cwd = tmp_path_factory.mktemp("home")
    names = {0: "zero", 1: "one", 2: "two"}
    tokenizer = small_tokenizer("arc", codebook_size=32)
    prior = PixelCNN(32, 3, (4, 4), channels=8, num_layers=3, head_channels=16, label_dropout=0.1)
    unet = make_unet(tokenizer.latent_shape, 3, 16, (1,), num_blocks=1, head_channels=8)
    with torch.no_grad():
        prior.head[-1].weight.mul_(20)
        tokenizer.decoder.conv_out.weight.mul_(20)
        unet.class_embedding.weight.mul_(5)
    ArcVQPixelCNNPipeline(tokenizer, prior, names).save_pretrained(cwd / "pixelcnn")
    ArcVQLDMPipeline(tokenizer, unet, make_scheduler(), names, 1.0).save_pretrained(cwd / "ldm")
    return cwd


def command(*options):
    return [sys.executable, str(ROOT / "scripts" / "sample.py"), *map(str, options)]


def run(home, *options, processes=1):
    done = forked_process.run(command(*options), home, processes=processes)
    assert done.returncode == 0, done.stderr
    return done


def refused(home, *options):
    done = forked_process.run(command(*options), home)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def pixels(folder):
    images = FolderImages(folder / "images")
    return torch.stack(list(images)).int()


@pytest.mark.parametrize(
    ("stage", "numbers"),
    [
        ("pixelcnn", (3,)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("pixelcnn", (2, 4)), ("ldm", (2,)), ("ldm", (3,)))),
    ],
)
def test_processes_and_kills_change_no_byte(home, stage, numbers):
    for leftover in home.glob(f"{stage}-*"):
        shutil.rmtree(leftover)
    options = (stage, "--num_images", 200, "--batch_size", 7, *(STEPS if stage == "ldm" else ()))
    run(home, *options, "--output", f"{stage}-whole")
    whole = contents(home / f"{stage}-whole")
    assert len(whole) == 201 and len(set(whole.values())) > 100
    assert whole.keys() >= {"grid.png", "images/00000000-class-0000.png", "images/00000199-class-0001.png"}
    for processes in numbers:
        run(home, *options, "--output", f"{stage}-{processes}", processes=processes)
        assert contents(home / f"{stage}-{processes}") == whole

    killed = home / f"{stage}-killed"
    there = []
    for _ in range(2):
        process = forked_process.PreloadedProcess(command(*options, "--output", killed), home)
        before = len(there)
        while len(there := list(killed.glob("sampling-*/*.safetensors"))) < before + 4:
            assert process.poll() is None, process.output()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert not (killed / "images").exists()
    marked = {file: file.stat().st_mtime_ns for file in killed.glob("sampling-*/*.safetensors")}
    assert 8 <= len(marked) < 29
    done = run(home, *options, "--output", killed)
    assert f"{sum(sample_count(file) for file in marked)}/200" in done.stderr  # the bar begins with what is there
    assert contents(killed) == whole
    assert not list(killed.glob("sampling-*")), "what was sampled is kept once"


def sample_count(chunk):
    first, last = map(int, chunk.stem.split("-"))
    return last - first


@pytest.mark.parametrize("stage", ["pixelcnn", pytest.param("ldm", marks=pytest.mark.slow)])
def test_the_batch_size_changes_rounding_at_most(home, stage):
    options = (stage, "--num_images", 70, *(STEPS if stage == "ldm" else ()))
    images = []
    for size in (1, 7, 64):
        run(home, *options, "--batch_size", size, "--output", f"{stage}-batch-{size}")
        images.append(pixels(home / f"{stage}-batch-{size}"))
    for other in images[1:]:
        assert ((images[0] - other).abs() <= 1).double().mean() > 0.99


def test_labels_of_every_kind(home):
    def labels(*options):
        run(home, "pixelcnn", "--format", "npz", *options)
        return np.load(home / "out" / "samples.npz")["arr_1"].tolist()

    def fresh(*options):
        found = labels("--output", "out", *options)
        for file in (home / "out").iterdir():
            file.unlink()
        return found

    assert fresh("--num_images", 7) == [0, 1, 2, 0, 1, 2, 0]
    assert fresh("--num_images", 3, "--class_labels", 2, "zero") == [2, 0, 2]
    assert fresh("--per_class", 2, "--class_labels", 1, 0) == [1, 1, 0, 0]
    drawn = fresh("--num_images", 60, "--labels", "random")
    assert set(drawn) == {0, 1, 2} and drawn != sorted(drawn) and len(set(map(drawn.count, range(3)))) > 1
    assert drawn == fresh("--num_images", 60, "--labels", "random")
    assert set(fresh("--num_images", 30, "--labels", "random", "--class_labels", 1, 2)) == {1, 2}
    (home / "labels.txt").write_text("2\none\n\n0\n2\n")
    assert fresh("--labels", "labels.txt") == [2, 1, 0, 2]
    assert fresh("--labels", "labels.txt", "--num_images", 2) == [2, 1]


def test_every_image_has_its_seed(home):
    run(home, "pixelcnn", "--num_images", 6, "--class_labels", 1, "--seed", 10, "--output", "ten")
    run(home, "pixelcnn", "--num_images", 4, "--class_labels", 1, "--seed", 12, "--output", "twelve")
    assert torch.equal(pixels(home / "ten")[2:], pixels(home / "twelve"))
    assert len(pixels(home / "ten").flatten(1).unique(dim=0)) == 6


def test_formats_hold_the_same_images_and_are_read_back(home):
    for form in ("png", "npz", "webdataset"):
        run(home, "pixelcnn", "--num_images", 9, "--format", form, "--output", form)
    png, npz = FolderImages(home / "png/images"), NpzImages(home / "npz/samples.npz")
    assert npz.images.shape == (9, 16, 16, 3) and npz.images.dtype == np.uint8
    assert npz.labels.tolist() == [0, 1, 2] * 3
    shards = load_images(DataConfig(name=str(home / "webdataset/shards"), streaming=True), "train")
    for index in range(9):
        assert torch.equal(npz[index], png[index].expand(3, -1, -1))
        image = ((shards[index]["images"] / 2 + 0.5) * 255).round().to(torch.uint8)
        assert torch.equal(image, png[index]) and shards[index]["labels"] == index % 3
    with tarfile.open(home / "webdataset/shards/samples-000000.tar") as shard:
        assert [member.name for member in shard][:3] == ["00000000.cls", "00000000.json", "00000000.png"]
        assert json.load(shard.extractfile("00000004.json")) == {"label": 1, "seed": 4}
    facts = json.loads((home / "npz/samples.json").read_text())
    assert facts["settings"]["images"] == 9 and "sample.py pixelcnn --num_images 9" in facts["provenance"]["command"]


def test_shards_are_cut_and_the_same_bytes_again(tmp_path, monkeypatch):
    monkeypatch.setattr("arcvq.sampling.writers.IMAGES_PER_SHARD", 4)
    images = torch.randint(256, (10, 3, 5, 5), dtype=torch.uint8)
    for name in ("first", "second"):
        write_webdataset(tmp_path / name, iter(images), torch.arange(10), range(10))
    first, second = ([file.read_bytes() for file in sorted((tmp_path / n).iterdir())] for n in ("first", "second"))
    assert first == second and len(first) == 3


def test_a_set_that_is_there_is_neither_sampled_again_nor_overwritten(home):
    options = ("pixelcnn", "--num_images", 5, "--format", "npz")
    run(home, *options, "--output", "there")
    file = home / "there/samples.npz"
    before = (file.stat().st_mtime_ns, file.read_bytes())
    assert "5 images are there already: there/samples.npz" in run(home, *options, "--output", "there").stdout
    for change in (("--seed", 1), ("--sampling.top_k", 2), ("--format", "png")):
        line = refused(home, *options, *change, "--output", "there")
        name = change[0].removeprefix("--").split(".")[0]
        assert f"there holds other samples: they differ in {name}; remove it, or name another --output" in line
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    # What is not there any more is sampled again; a file that is none of ours is said to be none.
    file.unlink()
    assert "there already" not in run(home, *options, "--output", "there").stdout
    assert file.read_bytes() == before[1]
    (home / "there/samples.json").write_text("{}")
    assert "there/samples.json is not what this script writes" in refused(home, *options, "--output", "there")
    (home / "foreign/images").mkdir(parents=True)
    (home / "foreign/images/mine.png").write_bytes(b"mine")
    assert "foreign/images is there, and not by this command" in refused(
        home, "pixelcnn", "--num_images", 5, "--output", "foreign"
    )
    assert (home / "foreign/images/mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize("moment", ["claim", "all_to_disk", "save_class_samples", "provenance", "remove"])
def test_an_end_in_the_middle_of_writing_loses_nothing(home, monkeypatch, moment):
    monkeypatch.chdir(home)
    options = ["pixelcnn", "--num_images=9", "--batch_size=4"]
    sample.main([*options, f"--output={moment}-whole"])
    with pytest.MonkeyPatch.context() as patch:
        place = {"all_to_disk": atomic_files, "remove": ResumableMap}.get(moment, sample)
        patch.setattr(place, moment, killed_after_the_first if moment == "claim" else killed)
        with pytest.raises(KeyboardInterrupt):
            sample.main([*options, f"--output={moment}-killed"])
    whole, again = Path(f"{moment}-whole"), Path(f"{moment}-killed")
    if moment == "claim":  # before anything was written: images of the user's may lie there by now
        (again / "images").mkdir()
        (again / "images/mine.png").write_bytes(b"mine")
        with pytest.raises(ValueError, match="is there, and not by this command"):
            sample.main([*options, f"--output={again}"])
        assert (again / "images/mine.png").read_bytes() == b"mine"
        shutil.rmtree(again / "images")
    sample.main([*options, f"--output={again}"])
    assert contents(again) == contents(whole) and (again / "samples.json").is_file()
    assert sorted(file.name for file in again.iterdir()) == sorted(file.name for file in whole.iterdir())


def killed(*args, **kwargs):
    raise KeyboardInterrupt


def killed_after_the_first(target, chunks):
    if chunks.is_dir():
        raise KeyboardInterrupt


def test_unfinished_samples_of_other_settings_are_pointed_out(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    Path("noted/sampling-0123").mkdir(parents=True)
    sample.main(["pixelcnn", "--num_images=2", "--output=noted"])
    assert "note: noted/sampling-0123 hold unfinished samples of other settings" in capsys.readouterr().out


def test_the_folder_that_is_named_where_none_is_lies_in_the_pipelines_own(home):
    for said in ("5 images: pixelcnn/samples-3/images", "5 images are there already: pixelcnn/samples-3/images"):
        assert said in run(home, "pixelcnn", "--num_images", 5, "--seed", 3).stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pixelcnn", "--num_images", 0), "num_images must be at least 1, got 0"),
        (("pixelcnn", "--batch_size", 0), "batch_size must be at least 1, got 0"),
        (("pixelcnn", "--seed", -1), "seed must be at least 0, got -1"),
        (("pixelcnn", "--class_labels", 3), "class label 3 is out of range: the classes are 0 to 2"),
        (("pixelcnn", "--labels", "none.txt"), "a text file that is there, got 'none.txt'"),
        (
            ("pixelcnn", "--labels", "few.txt", "--num_images", 3),
            "few.txt has 2 labels, one in each line, for 3 images",
        ),
        (("pixelcnn", "--labels", "few.txt", "--class_labels", 0), "leave one out"),
        (("pixelcnn", "--sampling.eta", 0.5), "has no option sampling.eta; it has guidance_scale, temperature, top_k"),
        (("pixelcnn", "--sampling.scheduler", "unipc"), "has no option sampling.scheduler"),
        (("pixelcnn", "--speed.dtype", "bfloat16"), "has no option speed.dtype; it has compile"),
        (("pixelcnn", "--labels", "few.txt", "--per_class", 3), "--per_class 3 changes nothing beside the file"),
        (("pixelcnn", "--labels", "binary.txt"), "binary.txt is no text file"),
        (("pixelcnn", "--class_labels", "²"), "unknown class '²'"),
        (("pixelcnn", "--sampling.top_k", 0), "top_k must be at least 1, got 0"),
        (("pixelcnn", "--sampling.guidance_scale", -1), "guidance_scale must be at least 0 and finite, got -1.0"),
        (("ldm", "--sampling.eta", 5), "eta must be between 0 and 1, got 5.0"),
        (("ldm", "--sampling.eta", 0.5, "--sampling.scheduler", "unipc"), "UniPCMultistepScheduler has none"),
        (("ldm", "--sampling.num_inference_steps", 2000), "num_inference_steps must be between 1 and 1000, got 2000"),
        (("ldm", "--sampling.num_inference_steps", 300), "would leave 100 of 1000 undone"),
        (("ldm", "--sampling.scheduler", "euler"), "sampling.scheduler"),
        (("ldm", "--sampling.guidance_interval", "[0.6,0.2]"), "0 <= low <= high <= 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(home, options, message):
    (home / "few.txt").write_text("0\n1\n")
    (home / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert message in refused(home, *options, "--output", "refused")
    assert not (home / "refused").exists()


def test_schedulers_and_speed_are_options(home):
    options = ("ldm", "--num_images", 3, *STEPS)
    run(home, *options, "--output", "plain")
    plain = pixels(home / "plain")
    changed = {
        "unipc": ("--sampling.scheduler", "unipc"),
        "dpmsolver++": ("--sampling.scheduler", "dpmsolver++"),
        "interval": ("--sampling.guidance_interval", "[0.0,0.5]", "--sampling.guidance_scale", 6),
    }
    for name, more in changed.items():
        run(home, *options, *more, "--output", name)
        assert not torch.equal(pixels(home / name), plain)
        facts = json.loads((home / name / "samples.json").read_text())["settings"]
        assert facts["scheduler"]["class"] == {
            "unipc": "UniPCMultistepScheduler",
            "dpmsolver++": "DPMSolverMultistepScheduler",
        }.get(name, "DDIMScheduler")
    run(home, *options, "--speed.dtype", "bfloat16", "--speed.channels_last", "true", "--output", "bf16")
    assert (pixels(home / "bf16") - plain).abs().double().mean() < 2


def test_the_grid_shows_every_class_alike():
    labels = torch.arange(3000) % 20
    shown = sample.first_of_each_class(labels)
    assert labels[shown].bincount().tolist() == [10] * 20 and shown == sorted(shown)
    many = sample.first_of_each_class(torch.arange(1000))
    assert len(many) == 1000  # one of each


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pixelcnn", "ldm"])
def test_compiled_pipelines_sample_the_same_images(home, stage):
    options = (stage, "--num_images", 7, "--batch_size", 3, *(STEPS if stage == "ldm" else ()))
    run(home, *options, "--output", f"{stage}-eager")
    done = run(home, *options, "--speed.compile", "true", "--output", f"{stage}-compiled")
    assert "Warning" not in done.stderr
    apart = (pixels(home / f"{stage}-eager") - pixels(home / f"{stage}-compiled")).abs()
    assert (apart <= 1).double().mean() > 0.99
