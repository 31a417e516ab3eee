"""Images from anywhere: decoded, or one error in bounded time and memory; where they are skipped, what stands in."""

import copy
import io
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib

import datasets
import numpy as np
import PIL.GifImagePlugin
import PIL.Image
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import ROOT

from arcvq.faults import forked_process
from priors import latents
from tokenizer.data import (
    DataConfig,
    DataError,
    bad_images,
    evaluation_batches,
    load_images,
    load_into_memory,
    training_batches,
)
from tokenizer.data import decoding as image_files
from tokenizer.data.bad_images import BadImages, report_bad_images
from tokenizer.data.decoding import ImageError, convert, decode_image
from tokenizer.data.framing import Framing, mirrored, uniform_draws
from tokenizer.data.streaming import webdataset as tar_shards

REPOSITORY = ROOT


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory, monkeypatch):
    """What is kept of a folder goes to a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))


def noise(seed, size=(9, 7), mode="RGB"):
    """A random image, (width, height) as PIL counts."""
    shape = (size[1], size[0], len(PIL.Image.new(mode, (1, 1)).getbands()))
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return PIL.Image.frombytes(mode, size, values.tobytes())


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, bits, colour, rows):
    """A PNG written by hand: of what PIL does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def message(call, error=DataError):
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


# One image


def wide(mode):
    values = np.random.default_rng(1).integers(0, 65536, (7, 9), dtype=np.uint16)
    return PIL.Image.fromarray(values) if mode == "I;16" else PIL.Image.fromarray(values).convert("I")


def encodings():
    yield from (encoded(noise(0, mode=mode)) for mode in ("L", "RGB", "RGBA", "LA"))
    yield encoded(noise(0).quantize(7), transparency=2)
    yield encoded(wide("I;16"))
    yield encoded(noise(0), "PNG", save_all=True, append_images=[noise(1)])
    yield from (encoded(noise(0, mode=mode), "JPEG") for mode in ("L", "RGB", "CMYK"))
    yield encoded(noise(0), "JPEG", progressive=True, exif=b"Exif\0\0" + bytes(PIL.Image.Exif().tobytes()[6:]))
    yield encoded(noise(0), "MPO", save_all=True, append_images=[noise(1)])
    yield encoded(noise(0).quantize(7), "GIF")
    yield encoded(noise(0).quantize(7), "GIF", save_all=True, append_images=[noise(1).quantize(7)])
    yield from (encoded(noise(0, mode=mode), "WEBP", lossless=True) for mode in ("RGB", "RGBA"))
    yield from (encoded(noise(0, mode=mode), "BMP") for mode in ("L", "RGB"))
    yield from (encoded(noise(0, mode=mode), "TIFF") for mode in ("L", "RGB", "CMYK", "LAB"))
    yield from (encoded(wide(mode), "TIFF", compression="tiff_lzw") for mode in ("I;16", "I"))
    yield encoded(noise(0), "TIFF", compression="tiff_adobe_deflate")
    yield from (encoded(noise(0, mode=mode), "PPM") for mode in ("L", "RGB"))
    yield from (encoded(noise(0, mode=mode), "JPEG2000") for mode in ("L", "RGBA"))
    yield from (encoded(noise(0, mode=mode), "TGA", compression="tga_rle") for mode in ("RGB", "RGBA"))
    if "AVIF" in image_files._formats():
        yield encoded(noise(0, mode="RGBA"), "AVIF", speed=10)


ENCODINGS = list(encodings())


@pytest.mark.robustness
@settings(max_examples=1200, deadline=None, derandomize=True, database=None)
@given(
    whole=st.sampled_from(ENCODINGS),
    cut=st.floats(0, 1) | st.just(1.0),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True) | st.floats(0, 0.1), st.binary(min_size=1, max_size=4))
    ),
    channels=st.sampled_from([1, 3]),
)
@example(whole=b"", cut=1.0, changes=[], channels=3)
def test_any_bytes_are_an_image_or_one_error(whole, cut, changes, channels):
    content = bytearray(whole[: round(cut * len(whole))])
    for place, replacement in changes:
        start = int(place * len(content))
        content[start : start + len(replacement)] = replacement
    try:
        image = convert(decode_image(bytes(content), "image x"), channels, "image x")
        Framing(4, resize_to=5).apply(image, "image x")
    except ImageError as error:
        assert str(error).startswith("image x") and "\n" not in str(error) and " at 0x" not in str(error)
    else:
        assert image.mode == ("L" if channels == 1 else "RGB") and min(image.size) > 0


def test_whole_images_of_every_format_are_taken():
    taken = []
    for content in ENCODINGS:
        try:
            taken.append(decode_image(content, "x").format)
        except ImageError as error:
            assert "frames" in str(error)
    assert len(taken) == len(ENCODINGS) - 2
    assert set(taken) >= {"PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "TGA"}


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"SIMPLE  =  T"]
)
def test_formats_that_start_programs_are_not_opened(content, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    assert "not an image of the formats PNG, JPEG" in message(lambda: decode_image(content + bytes(200), "x"))


def test_a_header_of_more_pixels_than_fit_is_refused_before_they_are_decoded(monkeypatch):
    text = message(lambda: decode_image(png(100_000, 100_000, 8, 6, b""), "image a.png"), ImageError)
    assert text.startswith("image a.png is too large") and "10000000000 pixels" in text and "MAX_IMAGE_PIXELS" in text
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 60)
    for form, limit in (("PNG", 60), ("WEBP", 30)):  # PIL itself would only warn
        assert decode_image(encoded(noise(0, (limit, 1)), form), "x").width == limit
        text = message(lambda form=form, limit=limit: decode_image(encoded(noise(0, (limit + 1, 1)), form), "x"))
        assert text.startswith(f"x is too large: {limit + 1}x1, more than {limit} pixels; remove it")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert decode_image(encoded(noise(0, (63, 1))), "x").width == 63


@pytest.mark.slow
def test_what_pil_warns_of_is_neither_printed_nor_raised(tmp_path):
    (tmp_path / "warns.py").write_text(
        "import io, warnings, PIL.Image\n"
        "from tokenizer.data.decoding import DataError, decode_image\n"
        "PIL.Image.MAX_IMAGE_PIXELS, file = 60, io.BytesIO()\n"
        "PIL.Image.new('L', (80, 1)).save(file, format='png')\n"
        "for action in ('always', 'error'):\n"
        "    warnings.filterwarnings(action, append=True)\n"
        "    try:\n        decode_image(file.getvalue(), 'x')\n    except DataError as error:\n        print(error)\n"
    )
    done = forked_process.run([sys.executable, str(tmp_path / "warns.py")], tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("x is too large: 80x1, more than 60 pixels; ") for line in lines)
    assert "omb" not in done.stderr


def test_a_file_of_more_bytes_than_are_read(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    for name in range(2):
        noise(name, (8, 8)).save(tmp_path / "train" / f"{name}.png")
    data = load_images(DataConfig(name=str(tmp_path)), "train")
    with (tmp_path / "train" / "1.png").open("wb") as file:
        file.truncate(2**40)
    assert "has 1,099,511,627,776 bytes, more than" in message(lambda: data[1])
    (tmp_path / "train" / "1.png").unlink()
    os.mkfifo(tmp_path / "train" / "1.png")
    assert "it is no file; remove it" in message(lambda: data[1])
    monkeypatch.setattr(image_files, "MAX_ENCODED_BYTES", 10)
    assert "bytes, more than 10; remove or compress it" in message(lambda: decode_image(bytes(11), "x"))


def test_an_image_too_long_to_be_resized_is_refused_before_memory_is_taken():
    image = PIL.Image.new("L", (100_000, 1))
    text = message(lambda: Framing(256, resize_to=256).apply(image, "image x"), ImageError)
    assert text.startswith("image x, 100000x1, resized to a short side of 256, is too large: 25600000x256")
    assert Framing(1).apply(image, "x").size == (1, 1)
    long = PIL.Image.new("L", (2**20 + 2, 4))
    assert "the long side is too long to be resized" in message(lambda: Framing(2, resize_to=2).apply(long, "x"))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_images_of_several_frames_are_errors_and_a_phones_jpeg_is_its_first(form):
    frames = [noise(seed).quantize(9) if form == "GIF" else noise(seed) for seed in range(3)]
    text = message(lambda: decode_image(encoded(frames[0], form, save_all=True, append_images=frames[1:]), "image x"))
    count = "3" if form in ("PNG", "WEBP") else "several"
    assert text == f"image x has {count} frames; save the one to use as an image of its own"
    alone = decode_image(encoded(frames[0], form), "x")
    assert alone.size == (9, 7)
    first = encoded(noise(0), "JPEG", quality=95)
    phone = decode_image(encoded(noise(0), "MPO", save_all=True, append_images=[noise(1)], quality=95), "x")
    assert phone.format == "MPO" and np.array_equal(phone, PIL.Image.open(io.BytesIO(first)))


def test_a_million_frames_are_not_counted(monkeypatch):
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    content, seek = head + frame * 1_000_000 + b";", PIL.GifImagePlugin.GifImageFile.seek
    monkeypatch.setattr(PIL.GifImagePlugin.GifImageFile, "n_frames", property(lambda _: pytest.fail("counted")))
    sought = []
    monkeypatch.setattr(
        PIL.GifImagePlugin.GifImageFile, "seek", lambda image, frame: sought.append(frame) or seek(image, frame)
    )
    assert "several frames" in message(lambda: decode_image(content, "x"))
    assert len(sought) < 3 and max(sought, default=0) < 2


def test_16_bit_rgba_shows_white_through():
    rows = b"\0" + struct.pack(">8H", 65535, 257, 0, 65535, 10, 20, 30, 0)
    image = convert(decode_image(png(2, 1, 16, 6, rows), "x"), 3, "x")
    assert np.asarray(image).tolist() == [[[255, 1, 0], [255, 255, 255]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_converted_in_tiles_to_the_same_pixels(monkeypatch, channels):
    made = [noise(2, (23, 17), mode) for mode in ("L", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "RGBX")]
    made += [noise(2, (23, 17)).quantize(9), noise(2, (23, 17), "L").convert("1")]
    values = np.random.default_rng(3).integers(0, 65536, (17, 23), dtype=np.uint16)
    made += [PIL.Image.fromarray(values), PIL.Image.fromarray(values).convert("I")]
    made += [PIL.Image.frombytes("I;16B", (23, 17), values.astype(">u2").tobytes())]
    for colour, image in ((4, noise(2, (23, 17)).quantize(9)), (77, noise(2, (23, 17), "L"))):
        image.info["transparency"] = colour
        made.append(image)
    whole = [np.asarray(convert(image, channels, "x")) for image in made]
    monkeypatch.setattr(image_files, "_TILE", 5)
    for image, expected in zip(made, whole, strict=True):
        assert np.array_equal(convert(image, channels, "x"), expected), image.mode


def bytes_taken(form, mode, side):
    """The most memory that an image takes on its way to pixels, in a process of its own."""

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    options = {"TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True, "method": 0}, "AVIF": {"speed": 10}}
    colour = 777 if mode.startswith("I") else (10, 20, 30, 40)

    def contents(side):
        return encoded(PIL.Image.new(mode, (side, side), colour), form, **options.get(form, {}))

    def use(content, side):
        Framing(256, resize_to=side - 1).apply(convert(decode_image(content, "x"), 3, "x"), "x")

    small, large = contents(300), contents(side)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        use(small, 300)  # the code that is loaded on the way is not the image's
        before = peak()
        use(large, side)
        os.write(writer, struct.pack("q", peak() - before))
        os._exit(0)
    os.waitpid(child, 0)
    return struct.unpack("q", os.read(reader, 8))[0]


@pytest.mark.robustness
@pytest.mark.parametrize(
    ("form", "mode", "share"),
    [
        ("PNG", "RGBA", 1),
        ("PNG", "I;16", 1),
        ("TIFF", "I", 1),
        ("JPEG", "CMYK", 1),
        ("WEBP", "RGBA", 2),
        ("JPEG2000", "RGBA", 2),
    ],
)
def test_the_largest_image_takes_less_than_a_gib_and_a_half(form, mode, share):
    side = 5000
    taken = bytes_taken(form, mode, side) / side**2 * 89_478_485 / share
    assert 0 < taken < 1.5 * 2**30


# Skipped images


BROKEN = [0, 5, 6, 7, 13, 22, 23]  # of 24: the first one, three in a row, and the last two, after which comes 1
NUMBER = 24


def stand_in(index):
    while index in BROKEN:
        index = (index + 1) % NUMBER
    return index


def contents():
    """Encoded images of 9x7: of those in BROKEN each is unusable in another way."""
    whole = [encoded(noise(seed)) for seed in range(NUMBER)]
    ways = [
        b"no image at all",
        whole[5][:-30],
        encoded(PIL.Image.new("F", (9, 7)), "TIFF"),
        encoded(noise(7, (5, 20))),  # too small for 6x6
        encoded(noise(13).quantize(5), "GIF", save_all=True, append_images=[noise(1).quantize(5)]),
        png(100_000, 100_000, 8, 2, b""),
        b"",
    ]
    for index, way in zip(BROKEN, ways, strict=True):
        whole[index] = way
    return whole


def write(folder, kind, split, images):
    """Images with their numbers as labels, as class folders or in shards."""
    folder.mkdir(exist_ok=True)
    if kind == "folder":
        for number, content in enumerate(images):
            file = folder / split / f"{number:02}" / "image.png"
            file.parent.mkdir(parents=True)
            file.write_bytes(content)
    elif kind == "tar":
        for part, start in enumerate(range(0, len(images), 9)):
            with tarfile.open(folder / f"{split}-{part}.tar", "w") as archive:
                for number in range(start, min(start + 9, len(images))):
                    for ending, content in (("cls", str(number).encode()), ("png", images[number])):
                        info = tarfile.TarInfo(f"{number:02}.{ending}")
                        info.size = len(content)
                        archive.addfile(info, io.BytesIO(content))
    else:
        columns = {"image": [{"bytes": content, "path": None} for content in images], "label": list(range(len(images)))}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"{split}-0.parquet", batch_size=4)


@pytest.fixture(scope="module", params=["folder", "table", "parquet", "tar"])
def config(request, tmp_path_factory):
    """24 images of which seven are unusable; `table` is parquet that is not streamed."""
    folder, kind = tmp_path_factory.mktemp(request.param), request.param.replace("table", "parquet")
    write(folder, kind, "train", contents())
    write(folder, kind, "test", contents())
    options = {"image_size": 6, "resize_to": 0, "crop": "random", "flip": True, "shuffle_buffer": 12}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_shards, "BLOCK_SAMPLES", 4)
        streaming = request.param in ("parquet", "tar")
        yield DataConfig(name=str(folder), streaming=streaming, on_bad_image="skip", **options)


def centre(number):
    return torch.from_numpy(np.asarray(noise(number))[:6, 1:7].copy()).permute(2, 0, 1)


def as_bytes(images):
    return images.add(1).mul(127.5).round().byte()


def test_the_next_usable_image_stands_in_with_its_label(config):
    train = load_images(config, "train")
    assert (train.image_size, train.channels, len(train)) == (6, 3, NUMBER)
    for index in range(NUMBER):
        item = train[index]
        assert item["labels"] == stand_in(index) and item["labels"].dtype == torch.int64
        assert torch.equal(as_bytes(item["images"]), centre(stand_in(index)))
        assert torch.equal(train.decode(index), centre(stand_in(index)))
    assert train.bad_images.found.nonzero().flatten().tolist() == BROKEN
    batch = train[[6, 22, 3]]
    assert batch["labels"].tolist() == [8, 1, 3] and torch.equal(as_bytes(batch["images"][1]), centre(1))
    for index in (NUMBER, -NUMBER - 1):
        with pytest.raises(IndexError):
            train[index]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_training_sees_stand_ins_and_counts_each_image_once(config, num_workers, world_size):
    train = load_images(config, "train")
    run = {"batch_size": 4, "seed": 3, "stop_step": 13, "world_size": world_size, "num_workers": num_workers}
    shares = [list(training_batches(train, start_step=0, rank=rank, **run)) for rank in range(world_size)]
    assert train.bad_images.found.nonzero().flatten().tolist() == BROKEN and train.bad_images.count == 7
    resumed = [list(training_batches(train, start_step=7, rank=rank, **run)) for rank in range(world_size)]
    seen = []
    for step, parts in enumerate(zip(*shares, strict=True)):
        labels, images = (torch.cat([part[name] for part in parts]) for name in ("labels", "images"))
        if step >= 7:
            again = [share[step - 7] for share in resumed]
            assert torch.equal(torch.cat([part["images"] for part in again]), images)
        for label, image in zip(labels.tolist(), as_bytes(images), strict=True):
            draws = uniform_draws(3, step // 6, [label])  # those of the image that is seen, not of the one it replaces
            left, top = int(draws[0, 1] * 4), int(draws[0, 2] * 2)
            window = np.asarray(noise(label))[top : top + 6, left : left + 6]
            assert np.array_equal(image.permute(1, 2, 0), window[:, ::-1] if mirrored(draws)[0] else window)
        seen += labels.tolist()
    whole = sorted(stand_in(index) for index in range(NUMBER))
    assert sorted(seen[:NUMBER]) == sorted(seen[NUMBER : 2 * NUMBER]) == whole


def test_images_in_memory_and_encoded_ones_have_the_labels_of_those_that_stand_in(config, monkeypatch):
    expected = [stand_in(index) for index in range(NUMBER)]
    test = load_images(config, "test")
    monkeypatch.setattr(latents, "encode_images", lambda _, images: {"latents": images})
    (batches,) = latents.shard_batches(copy.copy(test), [range(NUMBER)], torch.device("cpu"), num_workers=1)
    shard = latents.encode_shard(None, batches)
    assert shard["labels"].tolist() == expected
    assert all(torch.equal(as_bytes(image[0]), centre(n)) for image, n in zip(shard["latents"], expected, strict=True))
    assert test.bad_images.count == 7  # marked in a worker, of a copy
    held = load_into_memory(load_images(config, "test"), DataConfig(num_workers=1))
    assert held.labels.tolist() == expected if not config.streaming else held.bad_images.count == 0
    if not config.streaming:
        assert all(torch.equal(pixels, centre(n)) for pixels, n in zip(held.pixels, expected, strict=True))
        assert report_bad_images(held).startswith("7 of 24 images are unusable and are skipped: ")


def test_the_report_counts_and_names_the_first(config):
    train = load_images(config, "train")
    assert report_bad_images(train) is None and report_bad_images(torch.zeros(3)) is None
    list(evaluation_batches(train, batch_size=5, num_workers=2))
    line = report_bad_images(train)
    assert line.startswith("7 of 24 images are unusable and are skipped: image ") and line.endswith("; and 4 more")
    assert line.count("cannot be decoded") == 2 and "float values" in line and "\n" not in line
    clone = pickle.loads(pickle.dumps(train))
    assert clone.bad_images.count == 7 and clone[5]["labels"] == 8


def test_an_unusable_image_is_an_error_unless_skipping_is_asked_for(config):
    options = vars(config) | {"on_bad_image": "error"}
    assert "cannot be decoded" in message(lambda: load_images(DataConfig(**options), "train"))  # the first image
    text = message(lambda: load_images(DataConfig(**options | {"on_bad_image": "ignore"}), "train"))
    assert text == "data.on_bad_image is ignore; set it to error or skip"


def test_a_data_set_of_unusable_images_is_an_error_soon(tmp_path, monkeypatch):
    for kind in ("folder", "tar"):
        write(tmp_path / kind, kind, "train", [b"x"] * 30)
        write(tmp_path / kind, kind, "test", [b"x"])  # or every tenth would be held out
        options = {"name": str(tmp_path / kind), "streaming": kind == "tar", "image_size": 6, "on_bad_image": "skip"}
        text = message(lambda options=options: load_images(DataConfig(**options), "train"))
        assert text.startswith("30 images in a row are unusable, the first: image ") and "cannot be decoded" in text
    for number in range(3):
        (tmp_path / f"folder/train/{number:02}/image.png").write_bytes(encoded(noise(number)))
    data = load_images(DataConfig(**options | {"name": str(tmp_path / "folder"), "streaming": False}), "train")
    assert data[3]["labels"] == 0 and data.bad_images.count == 27
    monkeypatch.setattr(bad_images, "LONGEST_GAP", 20)
    assert data[11]["labels"] == 0 and "20 images in a row" in message(lambda: data[10])
    for num_workers in (0, 1):
        batches = evaluation_batches(data, batch_size=30, num_workers=num_workers)
        assert message(lambda batches=batches: list(batches)).startswith("20 images in a row are unusable, the first: ")


def test_a_vanished_file_is_marked_in_the_fingerprint(tmp_path):
    write(tmp_path, "folder", "train", [encoded(noise(n, (8, 8))) for n in range(3)])
    skip = {"name": str(tmp_path), "on_bad_image": "skip"}
    load = [
        lambda: load_images(DataConfig(**skip), "train"),
        lambda: load_images(DataConfig(name=str(tmp_path)), "train"),
    ]
    assert load[0]().fingerprint() == load[1]().fingerprint()  # a run may go on with either
    data = [make() for make in load]
    (tmp_path / "train/01/image.png").unlink()
    whole = load_images(DataConfig(name=str(tmp_path)), "train")
    assert data[0].fingerprint() not in (load[0]().fingerprint(), whole.fingerprint())
    assert "cannot be read" in message(data[1].fingerprint)
    assert data[0][1]["labels"] == 2 and "image.png cannot be read: " in report_bad_images(data[0])


def test_a_shard_that_is_gone_is_an_error_also_where_images_are_skipped(tmp_path):
    write(tmp_path, "tar", "train", [encoded(noise(n, (8, 8))) for n in range(20)])
    data = load_images(DataConfig(name=str(tmp_path), streaming=True, on_bad_image="skip"), "train")
    (tmp_path / "train-1.tar").unlink()
    assert "train-1.tar cannot be read" in message(lambda: data[10])
    assert data.bad_images.count == 0


def test_stand_ins_are_found_again_without_trying_the_others():
    tried, bad = [], BadImages(9)

    def read(index):
        tried.append(index)
        if index in (2, 3):
            raise ImageError("broken")
        return index

    assert [bad.usable(index, read) for index in (2, 2, 3, -6)] == [4, 4, 4, 4] and tried == [2, 3, 4, 4, 4, 4]
    with pytest.raises(KeyError):
        bad.usable(0, {}.__getitem__)


# Workers


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, indices):
        time.sleep(0.02)
        return {"images": torch.tensor(indices), "process": torch.tensor(os.getpid())}


def test_workers_go_on_after_the_signals_that_end_a_job():
    batches, seen = evaluation_batches(Slow(), batch_size=2, num_workers=2), []
    for number, batch in enumerate(batches):
        seen += batch["images"].tolist()
        assert batch["process"] != os.getpid()
        if number < 3:
            os.kill(batch["process"].item(), (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number])
    assert seen == list(range(40))


@pytest.mark.slow
def test_a_process_with_workers_ends_when_it_fails():
    code = (
        "import torch\nfrom tokenizer.data.batches import evaluation_batches\n"
        "class Many(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 1000\n"
        "    def __getitem__(self, indices): return {'labels': torch.tensor(indices)}\n"
        "kept = iter(evaluation_batches(Many(), batch_size=1, num_workers=2))\nnext(kept)\nraise ValueError('over')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ValueError: over")
