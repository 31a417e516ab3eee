"""The measurement of loaders: the same images for every case, and the same batches from each."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

from arcvq.benchmarks import loader
from arcvq.benchmarks.loader_peers import PEERS
from arcvq.benchmarks.made_images import write_forms
from tokenizer.data import DataConfig, load_images

TINY = ["--num_images", "8", "--batch_size", "3", "--image_size", "32", "--rounds", "1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_forms(tmp_path_factory.mktemp("made"), 9, seed=3)


def test_every_form_holds_the_same_images_of_the_seed(folders, tmp_path):
    def pixels(form, streaming):
        data = DataConfig(name=str(folders[form]), image_size=32, channels=3, streaming=streaming)
        with loader._caches_in(tmp_path / "cache"):
            images = load_images(data, "train")
            numbers = range(len(images))
            return {images[number]["images"].numpy().tobytes(): int(images[number]["labels"]) for number in numbers}

    expected = pixels("tar", True)
    assert len(expected) == 9 and set(expected.values()) == {0, 1, 2, 3}
    assert pixels("parquet", True) == expected
    assert pixels("files", False) == expected
    again = write_forms(tmp_path, 9, seed=3)["files"]
    other = write_forms(tmp_path / "other", 9, seed=4)["files"]
    first = "train/class_0/000000.jpg"
    assert (again / first).read_bytes() == (folders["files"] / first).read_bytes() != (other / first).read_bytes()


def test_the_peers_load_what_we_load(folders):
    """They may round a resized image otherwise, and crop a pixel beside."""
    ours = load_images(DataConfig(name=str(folders["files"]), image_size=32, channels=3), "train")
    ours = torch.stack([ours[number]["images"] for number in range(9)])
    for case in ("torchvision", "torchvision tensors"):
        (batch,) = PEERS[case][1](folders, 32, 9)
        distances = (batch[:, None] - ours[None]).abs().mean(dim=(2, 3, 4))
        assert distances.argmin(1).unique().numel() == 9 and distances.amin(1).max() < 0.2
        assert batch.dtype == torch.float32 and batch.shape == ours.shape


def test_the_numbers_are_written_with_their_protocol(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(loader.PEERS, "webdataset", ("no_such_package", None))
    loader.main([*TINY, "--output", str(tmp_path / "made" / "loader.json")])
    written = json.loads((tmp_path / "made" / "loader.json").read_text())
    assert set(written["results"]) == {*loader.OURS, *PEERS} - {"webdataset"}
    assert written["protocol"]["not_installed"] == ["webdataset"] and written["protocol"]["seed"] == 0
    for numbers in written["results"].values():
        (seconds,) = numbers["seconds_per_image"]
        assert numbers["images_per_second_and_core"] == pytest.approx(1 / seconds)
    assert "webdataset            not installed" in capsys.readouterr().out


def test_cases_that_load_different_batches_are_not_compared():
    cases = {name: lambda _, size=size: [torch.zeros(2, 3, size, size)] for name, size in (("a", 4), ("b", 5))}
    with pytest.raises(ValueError, match="the cases load different batches"):
        loader.measure(cases, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "rounds must be at least 1, got 0"),
        (["--batch_size", "9", "--num_images", "8"], "batch_size must be in 1..8, the images of a pass, got 9"),
        (["--cases", "torchvision,dali"], "unknown case 'dali'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_images_are_made(options, message, monkeypatch):
    monkeypatch.setattr(loader, "write_forms", None)
    with pytest.raises(ValueError, match=message):
        loader.main(options)


def test_the_images_are_of_the_sides_that_are_named(folders):
    for file in folders["files"].rglob("*.jpg"):
        with PIL.Image.open(file) as image:
            assert image.mode == "RGB" and all(300 <= side <= 500 for side in image.size)
            assert np.asarray(image).std() > 20
