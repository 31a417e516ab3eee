"""Data sets in memory: the same items, batches and order as from the encoded images, and when they are held."""

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from tokenizer.data import (
    DataConfig,
    DataError,
    StepBatches,
    evaluation_batches,
    load_images,
    load_into_memory,
    pixel_batches,
    training_batches,
)
from tokenizer.data.dataset import as_floats
from tokenizer.data.image_column import ImageColumn
from tokenizer.data.in_memory import PIXEL_BATCH, InMemoryImages, pixel_variance

IMAGES = 290  # 261 of them train: more than one batch of pixels


def write_noise(folder, size):
    folder.mkdir(parents=True)
    for i, image in enumerate(np.random.default_rng(len(folder.name)).integers(0, 256, (IMAGES // 2, *size, 3))):
        PIL.Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:03}.png")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A folder of colour images in two classes, of which some are cropped."""
    folder = tmp_path_factory.mktemp("images")
    write_noise(folder / "cat", (6, 6))
    write_noise(folder / "mouse", (6, 9))
    return DataConfig(name=str(folder), image_size=6)


@pytest.fixture(scope="module", params=["digits", "folder"])
def pair(request, config):
    """A data set, encoded and decoded."""
    config = DataConfig() if request.param == "digits" else config
    encoded = load_images(config, "train")
    return encoded, load_into_memory(encoded, config)


@pytest.fixture
def no_decoding(monkeypatch):
    def forbid():
        monkeypatch.setattr(ImageColumn, "decode", lambda *_: pytest.fail("an image was decoded"))

    return forbid


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].is_contiguous()
        assert torch.equal(found[name], tensor)


def assert_all_equal(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def test_floats_are_the_true_quotients():
    values = np.arange(256, dtype=np.uint8)
    expected = values.astype(np.float32) / np.float32(127.5) - np.float32(1)
    assert as_floats(torch.from_numpy(values)).dtype == torch.float32
    assert np.array_equal(as_floats(torch.from_numpy(values)).numpy(), expected)


def test_items_are_those_of_the_encoded_data_set(pair, no_decoding):
    encoded, decoded = pair
    expected = [encoded[index] for index in range(len(encoded))]
    no_decoding()
    assert isinstance(decoded, InMemoryImages) and decoded.pixels.dtype == torch.uint8
    assert len(decoded) == len(encoded) > PIXEL_BATCH
    assert_all_equal((decoded[index] for index in range(len(decoded))), expected)
    before = decoded.pixels.clone()
    decoded[0]["images"].zero_()
    assert torch.equal(decoded.pixels, before)


def test_attributes_are_those_of_the_encoded_data_set(pair):
    encoded, decoded = pair
    for name in ("channels", "image_size", "num_classes", "class_names", "name", "split"):
        assert getattr(decoded, name) == getattr(encoded, name), name
    assert torch.equal(decoded.labels, encoded.labels) and decoded.labels.dtype == torch.int64
    assert decoded.fingerprint() == encoded.fingerprint()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_are_the_same_in_the_same_order(pair, num_workers):
    encoded, decoded = pair
    per_epoch = len(encoded) // 60
    run = {"batch_size": 60, "seed": 3, "start_step": per_epoch - 2, "stop_step": per_epoch + 2}  # two epochs
    state = torch.get_rng_state()
    for share in ({}, {"rank": 0, "world_size": 3}, {"rank": 2, "world_size": 3}):
        expected = [
            {name: torch.stack([encoded[row][name] for row in rows]) for name in ("images", "labels")}
            for rows in StepBatches(len(encoded), **run, **share)
        ]
        for dataset in pair:
            assert_all_equal(training_batches(dataset, **run, **share, num_workers=num_workers), expected)
    whole = list(training_batches(decoded, **run))
    resumed = training_batches(decoded, **run | {"start_step": per_epoch}, num_workers=num_workers)
    assert len(resumed) == 2
    assert_all_equal(resumed, whole[2:])
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_batches_are_the_same(pair):
    encoded, decoded = pair
    assert_all_equal(evaluation_batches(decoded, batch_size=100), evaluation_batches(encoded, batch_size=100))
    images = torch.cat([batch["images"] for batch in evaluation_batches(decoded, batch_size=100)])
    assert torch.equal(images, as_floats(decoded.pixels))


def test_batches_of_a_decoded_data_set_come_from_this_process(pair):
    encoded, decoded = pair
    run = {"batch_size": 8, "seed": 0, "start_step": 0, "stop_step": 1, "num_workers": 2}
    assert training_batches(encoded, **run).batches.num_workers == 2
    assert training_batches(decoded, **run).batches.num_workers == 0


def test_workers_decode_the_same_pixels_and_progress_sees_all_batches(config):
    encoded, seen = load_images(config, "train"), []
    state = torch.get_rng_state()

    def progress(batches):
        for batch in batches:
            seen.append(len(batch[0]))
            yield batch

    decoded = load_into_memory(encoded, DataConfig(num_workers=2), progress)
    assert torch.equal(decoded.pixels, encoded.decode(list(range(len(encoded)))))
    assert seen == [PIXEL_BATCH, len(encoded) - PIXEL_BATCH]
    assert torch.equal(torch.get_rng_state(), state)


def test_variance_is_exact(pair):
    decoded = pair[1]
    expected = np.var(decoded.pixels.numpy().astype(np.float64) / 127.5 - 1)
    for dataset in pair:
        assert pixel_variance(pixel_batches(dataset, num_workers=0)) == pytest.approx(expected, rel=1e-12, abs=0)
    assert pixel_variance([torch.full((2, 1, 4, 4), 77, dtype=torch.uint8)]) == 0


def test_a_data_set_is_held_up_to_the_limit(config):
    encoded = load_images(config, "train")
    size = len(encoded) * 3 * 6 * 6 / 2**30
    for limit in (0, size * (1 - 1e-9)):
        assert load_into_memory(encoded, DataConfig(memory_limit_gib=limit)) is encoded
    assert isinstance(load_into_memory(encoded, DataConfig(memory_limit_gib=size)), InMemoryImages)


@pytest.mark.parametrize("limit", [-1, float("nan")])
def test_a_limit_that_is_none(limit):
    with pytest.raises(DataError, match=f"data.memory_limit_gib is {limit}; "):
        load_images(DataConfig(memory_limit_gib=limit), "train")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_the_same_error(tmp_path, num_workers):
    write_noise(tmp_path / "train", (6, 6))
    config = DataConfig(name=str(tmp_path), num_workers=num_workers)
    encoded = load_images(config, "train")
    file = tmp_path / "train" / f"{encoded.rows[100]:03}.png"
    file.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=file.name) as expected:
        encoded[100]
    with pytest.raises(DataError) as caught:
        load_into_memory(encoded, config)
    assert str(caught.value) == str(expected.value)


def test_flips_of_images_in_memory_are_those_of_the_encoded_ones(config):
    flipped = replace(config, flip=True)
    encoded = load_images(flipped, "train")
    decoded, run = load_into_memory(encoded, flipped), {"batch_size": 60, "seed": 3, "start_step": 2, "stop_step": 6}
    assert isinstance(decoded, InMemoryImages)
    before = decoded.pixels.clone()
    assert_all_equal(training_batches(decoded, **run), training_batches(encoded, **run))
    assert torch.equal(decoded.pixels, before)
    still = torch.cat([batch["images"] for batch in training_batches(load_images(config, "train"), **run)])
    seen = torch.cat([batch["images"] for batch in training_batches(decoded, **run)])
    mirrored = (seen == still.flip(-1)).flatten(1).all(1)
    assert torch.equal(torch.where(mirrored[:, None, None, None], still.flip(-1), still), seen)
    assert 0.3 < mirrored.float().mean() < 0.7


def test_images_that_are_cropped_at_random_are_not_held(config):
    cropped = replace(config, crop="random")
    encoded = load_images(cropped, "train")
    assert load_into_memory(encoded, cropped) is encoded
    test = load_images(cropped, "test")
    assert isinstance(load_into_memory(test, cropped), InMemoryImages)
