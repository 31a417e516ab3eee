"""What is known of a data set: of itself where it is here, else by its name."""

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
    ],
)
def test_what_is_not_here_is_known_by_its_name(name, options, images, classes, channels, size):
    facts = dataset_info(DataConfig(name=name, **options))
    assert (len(facts), facts.num_classes, facts.channels, facts.image_size) == (images, classes, channels, size)
    assert not facts.measured and facts.encoded_bytes > 200 * images


def test_memory_is_held_as_the_config_says():
    whole = 60_000 * 28 * 28
    assert bytes_held(dataset_info(DataConfig("mnist")), DataConfig("mnist")) == whole
    for options in ({"memory_limit_gib": 0.04}, {"crop": "random", "image_size": 28}, {"streaming": True}):
        config = DataConfig("mnist", **options)
        assert bytes_held(dataset_info(config), config) == 0


def test_unknown_and_incomplete_names_are_refused():
    with pytest.raises(DataError, match="nothing is known here, only of mnist, cifar10, imagenet"):
        dataset_info(DataConfig("someone/photographs", image_size=64))
    with pytest.raises(DataError, match=r"of many sizes; set data\.image_size"):
        dataset_info(DataConfig("imagenet"))
    with pytest.raises(DataError, match="resize_to is 8, less than"):
        dataset_info(DataConfig("mnist", image_size=28, resize_to=8))
