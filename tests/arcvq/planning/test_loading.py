"""The cores that load images for a GPU: as many as the images of a step need in its time."""

import pytest

from arcvq.planning import loading
from arcvq.planning.loading import loading_lines
from tokenizer.data import DataConfig
from tokenizer.data.facts import dataset_info


@pytest.mark.parametrize(
    ("seconds", "cores"), [(1.0, "1"), (0.064, "1"), (0.0639, "2"), (0.001, "64"), (1e-6, "64,000")]
)
def test_as_many_cores_as_load_the_images_of_a_step_in_its_time(monkeypatch, seconds, cores):
    monkeypatch.setattr(loading, "rate_of", lambda load, indices: 1000.0)
    lines = loading_lines(dataset_info(DataConfig()), 64, seconds)
    assert lines["cores per H100"].split(";")[0] == cores


def test_the_images_are_loaded_where_they_are_here(monkeypatch):
    loaded = []
    monkeypatch.setattr(loading, "rate_of", lambda load, indices: loaded.extend(map(load, indices)) or 5.0)
    loading_lines(dataset_info(DataConfig()), 64, 1.0)
    assert len(loaded) == loading.TIMED and {tuple(image.shape) for image in loaded} == {(1, 32, 32)}


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"name": "ILSVRC/imagenet-1k", "image_size": 256}, (3, 256, 256)),
        ({"name": "ffhq", "image_size": 512, "channels": 1, "crop": "random"}, (1, 512, 512)),
        ({"name": "ffhq", "image_size": 64, "resize_to": 600}, (3, 64, 64)),
    ],
)
def test_made_images_take_the_place_of_those_that_are_not_here(monkeypatch, options, shape):
    loaded = []
    monkeypatch.setattr(loading, "rate_of", lambda load, indices: loaded.extend(map(load, indices)) or 5.0)
    loading_lines(dataset_info(DataConfig(**options)), 8, 1.0)
    assert {tuple(image.shape) for image in loaded} == {shape} and len(loaded) == 8


def test_slow_images_end_the_measurement(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(loading.time, "process_time", lambda: next(now) * loading.LONGEST)
    loaded = []
    loading.rate_of(loaded.append, list(range(50)))
    assert loaded == [0, 0, 1]
