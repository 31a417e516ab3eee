"""What is known of a data set: of itself where it is here, else by its name or its page on the Hub."""

from types import SimpleNamespace

import datasets
import numpy as np
import PIL.Image
import pytest

from tokenizer.data import DataConfig, DataError
from tokenizer.data.facts import dataset_info
from tokenizer.data.in_memory import bytes_held


def test_a_folder_is_looked_at(tmp_path):
    sizes = []
    for index in range(20):
        file = tmp_path / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(256, size=(8 + index, 8 + index, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(file)
        sizes.append(file.stat().st_size)
    facts = dataset_info(DataConfig(name=str(tmp_path), image_size=8))
    assert (len(facts), facts.num_classes, facts.channels, facts.image_size) == (18, 2, 3, 8)  # two are held out
    assert sum(sizes) - 2 * max(sizes) <= facts.encoded_bytes < sum(sizes)
    assert facts.measured


def test_the_digits_are_here():
    facts = dataset_info(DataConfig())
    assert (len(facts), facts.num_classes, facts.channels, facts.image_size) == (1437, 10, 1, 32)
    assert facts.encoded_bytes == 1437 * (32 * 32 + len("P5 32 32 255 "))


@pytest.mark.parametrize(
    "name, options, images, classes, channels, size",
    [
        ("mnist", {}, 60_000, 10, 1, 28),
        ("cifar10", {"channels": 1}, 50_000, 10, 1, 32),
        ("ILSVRC/imagenet-1k", {"image_size": 128}, 1_281_167, 1000, 3, 128),
        ("hf://datasets/ILSVRC/imagenet-1k/data", {"image_size": 64, "streaming": True}, 1_281_167, 1000, 3, 64),
        ("elsewhere/ffhq", {"image_size": 256}, 60_000, 1, 3, 256),
        ("data/not/here/BSDS_500", {"image_size": 64}, 400, 1, 3, 64),
        ("clothing", {"image_size": 64}, 3_409, 10, 3, 64),
    ],
)
def test_what_is_not_here_is_known_by_its_name_without_the_hub(
    monkeypatch, name, options, images, classes, channels, size
):
    monkeypatch.setattr(datasets, "load_dataset_builder", None)
    facts = dataset_info(DataConfig(name=name, **options))
    assert (len(facts), facts.num_classes, facts.channels, facts.image_size) == (images, classes, channels, size)
    assert not facts.measured and facts.encoded_bytes > 200 * images


def test_images_that_are_held_out_are_not_trained_on():
    whole, part = (dataset_info(DataConfig("mnist", hold_out=number)) for number in (0, 6000))
    assert (len(whole), len(part)) == (60_000, 54_000) and part.encoded_bytes == whole.encoded_bytes * 9 // 10
    with pytest.raises(DataError, match="has 60000 training images"):
        dataset_info(DataConfig("mnist", hold_out=60_000))


def test_memory_is_held_as_the_config_says():
    whole = 60_000 * 28 * 28
    assert bytes_held(dataset_info(DataConfig("mnist")), DataConfig("mnist")) == whole
    for options in ({"memory_limit_gib": 0.04}, {"crop": "random", "image_size": 28}, {"streaming": True}):
        config = DataConfig("mnist", **options)
        assert bytes_held(dataset_info(config), config) == 0


def page(monkeypatch, num_examples=9_000, **columns):
    """Let the Hub describe every data set as one of these columns; returns the names that it is asked for."""
    asked = []
    split = datasets.SplitInfo("training", num_bytes=123_456, num_examples=num_examples)
    splits = datasets.splits.SplitDict({"training": split})
    features = datasets.Features({"image": datasets.Image(), **columns})
    builder = SimpleNamespace(info=datasets.DatasetInfo(features=features, splits=splits))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: asked.append(name) or builder)
    return asked


@pytest.mark.parametrize(
    "name", ["zh-plus/tiny-imagenet", "zalando-datasets/fashion_mnist", "hf://datasets/x/mnist-like/data"]
)
def test_a_name_that_holds_a_known_one_is_described_by_its_own_page(monkeypatch, name):
    asked = page(monkeypatch, label=datasets.ClassLabel(num_classes=7))
    facts = dataset_info(DataConfig(name=name, image_size=64, channels=3, streaming=True))
    assert (len(facts), facts.num_classes, facts.channels, facts.image_size) == (9_000, 7, 3, 64)
    assert facts.encoded_bytes == 123_456 and not facts.measured
    assert [name.removeprefix("hf://datasets/").removesuffix("/data")] == asked


def test_a_page_that_leaves_something_open_is_refused_with_the_option_to_set(monkeypatch):
    options = {"name": "someone/photographs", "image_size": 64, "channels": 3}
    page(monkeypatch)
    assert dataset_info(DataConfig(**options)).num_classes == 1
    with pytest.raises(DataError, match=r"set data\.channels"):
        dataset_info(DataConfig(**options | {"channels": None}))
    with pytest.raises(DataError, match=r"set data\.image_size"):
        dataset_info(DataConfig(**options | {"image_size": None}))
    page(monkeypatch, label=datasets.Value("int64"))
    with pytest.raises(DataError, match=r"how many classes its column 'label' has; set data\.label_column to none"):
        dataset_info(DataConfig(**options))
    assert dataset_info(DataConfig(**options, label_column="none")).num_classes == 1
    page(monkeypatch, num_examples=0)
    with pytest.raises(DataError, match="does not give its numbers"):
        dataset_info(DataConfig(**options))


def test_unknown_and_incomplete_names_are_refused(monkeypatch):
    def unreachable(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(DataError, match=r"known here of .*, only of mnist, .* not describe it: no network"):
        dataset_info(DataConfig("someone/photographs", image_size=64))
    with pytest.raises(DataError, match=r"set data\.name to a folder, or to a data set on the Hub"):
        dataset_info(DataConfig("photographs", image_size=64))
    with pytest.raises(DataError, match=r"of many sizes; set data\.image_size"):
        dataset_info(DataConfig("imagenet"))
    with pytest.raises(DataError, match="resize_to is 8, less than"):
        dataset_info(DataConfig("mnist", image_size=28, resize_to=8))
