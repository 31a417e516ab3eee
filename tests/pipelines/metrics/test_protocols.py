import io
import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.metrics import to_uint8
from pipelines.metrics.protocols import JPEG_QUALITY, PROTOCOLS, Protocol, jpeg, number_name, truncated
from tokenizer.data import DataConfig, load_images

RFID, OFFICIAL, FIDELITY, ADM = (PROTOCOLS[name] for name in ("rfid", "official_jpeg", "torch-fidelity", "adm"))


def floats(*shape, seed=0):
    """Images with values on and beyond the edges of [-1, 1]."""
    return 2.4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1.2


def levels():
    """All 256 levels as float images, as the data hands them out."""
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), torch.arange(256.0).view(1, 1, 16, 16) / 127.5 - 1


def test_truncation_is_that_of_the_float32_steps():
    near = levels()[1]
    below = [near]
    for _ in range(6):  # the steps round some of these up to the level, and float64 does not
        below.append(torch.nextafter(below[-1], torch.tensor(-9.0)))
    images = torch.cat([floats(5, 3, 16, 16), torch.cat(below).expand(-1, 3, -1, -1)])
    steps = (images.numpy() + np.float32(1)) / np.float32(2)
    steps = np.clip(steps, np.float32(0), np.float32(1)) * np.float32(255)
    assert steps.dtype == np.float32
    assert np.array_equal(truncated(images).numpy(), np.floor(steps).astype(np.uint8))
    assert torch.equal(truncated(images.double()), truncated(images))


def test_truncation_darkens_63_of_the_256_levels_by_one():
    exact, images = levels()
    darker = exact.int() - truncated(images).int()
    assert darker.unique().tolist() == [0, 1]
    assert darker.sum() == 63
    assert torch.equal(to_uint8(images), exact)
    # Values between the levels lose half a level on average.
    values = torch.linspace(-1, 1, 100_001).view(1, 1, 1, -1)
    lost = (values + 1) * 127.5 - truncated(values).float()
    assert lost.mean().item() == pytest.approx(0.5, abs=0.01)


def test_levels_of_this_test_are_those_of_the_data():
    item = load_images(DataConfig(name="digits"), "test")[0]["images"]
    table = levels()[1].flatten()
    assert torch.isin(item, table).all()
    assert torch.equal(table[to_uint8(item[None]).flatten().long()], item.flatten())


def test_jpeg_is_what_pil_reads_back_at_quality_75():
    images = torch.randint(256, (3, 3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = jpeg(images)
    assert found.dtype == torch.uint8 and found.shape == images.shape
    for image, ours in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=75)
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
    assert (found.int() - images.int()).abs().float().mean() > 1  # something is lost


def test_jpeg_keeps_grey_images_grey():
    grey = torch.randint(256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    red, green, blue = jpeg(grey.expand(-1, 3, -1, -1)).unbind(dim=1)
    assert torch.equal(red, green) and torch.equal(red, blue)
    flat = torch.full((1, 3, 16, 16), 77, dtype=torch.uint8)
    assert torch.equal(jpeg(flat), flat)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_protocol_makes_its_bytes(channels):
    images = floats(2, channels, 16, 16)
    for protocol in (RFID, FIDELITY, ADM):
        assert torch.equal(protocol.to_bytes(images), to_uint8(images))
    assert not torch.equal(truncated(images), to_uint8(images))
    assert torch.equal(OFFICIAL.to_bytes(images), jpeg(truncated(images).expand(-1, 3, -1, -1)))
    cut = Protocol("cut", "reconstruction", "originals", None, quantisation="truncate")
    assert torch.equal(cut.to_bytes(images), truncated(images))
    stored = Protocol("stored", "reconstruction", "originals", None, storage="jpeg")
    assert torch.equal(stored.to_bytes(images), jpeg(to_uint8(images).expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_images_that_are_not_finite_or_not_floating_point_are_refused(name):
    images = floats(1, 3, 16, 16)
    for value in (float("nan"), float("inf")):
        images[0, 1, 2, 3] = value
        with pytest.raises(ValueError, match="1 image values are NaN or infinite"):
            PROTOCOLS[name].to_bytes(images)
    with pytest.raises(ValueError, match="not floating point"):
        PROTOCOLS[name].to_bytes(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("metric", "protocol", "images", "asked", "expected"),
    [
        ("psnr", RFID, 360, 360, "psnr"),
        ("fid", RFID, 10_000, 10_000, "rfid"),
        ("fid", RFID, 100, 10_000, "rfid@100"),
        ("psnr", OFFICIAL, 360, 360, "psnr[official_jpeg]"),
        ("fid", OFFICIAL, 360, 360, "rfid[official_jpeg]"),
        ("frechet_distance[alexnet]", RFID, 360, 360, "frechet_distance[alexnet]"),
        ("frechet_distance[alexnet]", OFFICIAL, 100, 360, "frechet_distance[alexnet,official_jpeg]@100"),
        ("fid", FIDELITY, 5_000, 50_000, "fid@5000"),
        ("fid", FIDELITY, 50_000, 50_000, "fid"),
        ("fid", ADM, 49_999, 50_000, "fid@49999"),
        ("recall[digits-classifier]", FIDELITY, 360, 50_000, "recall[digits-classifier]@360"),
    ],
)
def test_a_numbers_name_says_what_it_is_not_comparable_with(metric, protocol, images, asked, expected):
    assert number_name(metric, protocol, images, asked) == expected


def test_only_protocols_that_alter_images_stand_in_a_numbers_name():
    for options in ({"quantisation": "truncate"}, {"storage": "jpeg"}):
        altering = Protocol("mine", "reconstruction", "originals", None, **options)
        assert number_name("psnr", altering, 1, 1) == "psnr[mine]"
    assert number_name("psnr", Protocol("mine", "reconstruction", "originals", None), 1, 1) == "psnr"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_description_holds_every_field_and_survives_json(name):
    protocol = PROTOCOLS[name]
    described = json.loads(json.dumps(protocol.describe()))
    assert described.pop("protocol") == name == protocol.name
    assert set(described) == {field.name for field in fields(Protocol)} - {"name"}
    assert described.pop("storage") == ("JPEG, quality 75" if protocol.storage == "jpeg" else "lossless")
    assert described == {key: getattr(protocol, key) for key in described}


def test_published_protocols_are_what_they_are_compared_by():
    assert JPEG_QUALITY == 75
    assert OFFICIAL.fid_input_229 and not any(protocol.fid_input_229 for protocol in (RFID, FIDELITY, ADM))
    assert [protocol.asked for protocol in (RFID, OFFICIAL, FIDELITY, ADM)] == [None, None, 50_000, 50_000]
    sides = {name: protocol.measures for name, protocol in PROTOCOLS.items()}
    assert [name for name, side in sides.items() if side == "reconstruction"] == ["rfid", "official_jpeg"]
