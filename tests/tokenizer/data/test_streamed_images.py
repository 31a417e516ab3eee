"""Streamed shards: every sample once, in one order for any ranks and workers; a broken shard is one line."""

import io
import tarfile

import datasets
import fsspec
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tokenizer.data import (
    DataConfig,
    DataError,
    evaluation_batches,
    load_images,
    load_into_memory,
    pixel_batches,
    training_batches,
)
from tokenizer.data.framing import uniform_draws
from tokenizer.data.streaming import splits as streamed_splits
from tokenizer.data.streaming import webdataset as tar_shards

SHARDS = [23, 1, 9, 40]  # one with a single sample; two ranks and three share four shards
SAMPLES = sum(SHARDS)


def picture(number):
    """Noise of 9x6 pixels, as PNG."""
    values = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).save(buffer, format="png")
    return buffer.getvalue()


def write_tar(file, members):
    """Members by name, each a text or bytes."""
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_shard(folder, kind, name, numbers):
    """Samples whose label is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "tar":
        members = {}
        for number in numbers:
            key = f"part/{number:06}"
            members |= {f"{key}.cls": str(number).encode(), f"{key}.json": b"{}", f"{key}.png": picture(number)}
        write_tar(folder / f"{name}.tar", members)
    else:
        columns = {"image": [{"bytes": picture(n), "path": None} for n in numbers], "label": list(numbers)}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"{name}.parquet", batch_size=7)


def write_shards(folder, kind, split="train", shards=SHARDS):
    ends = np.cumsum(shards).tolist()
    for number, (end, size) in enumerate(zip(ends, shards, strict=True)):
        write_shard(folder, kind, f"{split}-{number:05}-of-{len(shards):05}", range(end - size, end))
    return folder


@pytest.fixture(scope="module", params=["parquet", "tar"])
def config(request, tmp_path_factory):
    """Shards in blocks of 7, cropped at random and mirrored."""
    folder = write_shards(tmp_path_factory.mktemp(request.param), request.param)
    write_shards(folder, request.param, "validation", [5, 3])
    options = {"image_size": 6, "crop": "random", "flip": True, "shuffle_buffer": 24}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_shards, "BLOCK_SAMPLES", 7)
        yield DataConfig(name=str(folder), streaming=True, **options)


@pytest.fixture(scope="module")
def train(config):
    return load_images(config, "train")


def whole(dataset, steps, start_step=0, world_size=1, num_workers=0, seed=4, batch_size=6):
    """The global batches of the steps, put together from all ranks: images and labels in order."""
    run = {"batch_size": batch_size, "seed": seed, "start_step": start_step, "stop_step": steps}
    shares = [
        list(training_batches(dataset, **run, rank=rank, world_size=world_size, num_workers=num_workers))
        for rank in range(world_size)
    ]
    assert all(len(batch["labels"]) == batch_size // world_size for share in shares for batch in share)
    steps = list(zip(*shares, strict=True))
    return [torch.cat([part[name] for batch in steps for part in batch]) for name in ("images", "labels")]


def message(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_items_are_the_samples_in_order_and_held_out_ones_are_cropped_to_the_centre(config, train):
    test = load_images(config, "test")
    assert (len(train), len(test), train.image_size, train.channels) == (SAMPLES, 8, 6, 3)
    assert train.labels.tolist() == list(range(SAMPLES)) and train.class_names == [str(n) for n in range(SAMPLES)]
    centres = {number: np.asarray(PIL.Image.open(io.BytesIO(picture(number))))[:, 1:7] for number in range(SAMPLES)}
    for dataset in (train, test):
        batches = list(evaluation_batches(dataset, batch_size=5))
        images = torch.cat([batch["images"] for batch in batches]).add(1).mul(127.5).round().byte()
        assert torch.cat([batch["labels"] for batch in batches]).tolist() == list(range(len(dataset)))
        assert all(np.array_equal(image.permute(1, 2, 0), centres[n]) for n, image in enumerate(images))
        assert torch.equal(torch.cat(list(pixel_batches(dataset, 0))), images)
    assert torch.equal(train[30]["images"], train[[2, 30]]["images"][1]) and train[30]["labels"].dtype == torch.int64
    assert load_into_memory(train, config) is train


def test_every_sample_comes_once_per_epoch_in_an_order_of_seed_and_epoch(train):
    steps = 3 * SAMPLES // 6 + 1
    epochs = whole(train, steps)[1][: 3 * SAMPLES].reshape(3, SAMPLES)
    assert all(sorted(epoch) == list(range(SAMPLES)) for epoch in epochs.tolist())
    other = whole(train, steps, seed=5)[1][: 3 * SAMPLES].reshape(3, SAMPLES)
    assert len({tuple(epoch) for epoch in [*epochs.tolist(), *other.tolist()]}) == 6
    assert len(epochs[0].unique()) == SAMPLES and (epochs[0].diff() == 1).float().mean() < 0.2


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_ranks_and_workers_see_the_batches_and_pixels_of_one_process(train, world_size, num_workers):
    steps = 2 * SAMPLES // 6 + 2  # over the ends of two epochs
    state = torch.get_rng_state()
    images, labels = whole(train, steps)
    parts = whole(train, steps, world_size=world_size, num_workers=num_workers)
    assert torch.equal(parts[1], labels) and torch.equal(parts[0], images)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("start", [1, 5, 12, 13, 25])
def test_a_start_at_a_step_is_the_tail_of_the_whole_run(train, start):
    images, labels = whole(train, 27)
    resumed = training_batches(train, batch_size=6, seed=4, start_step=start, stop_step=27)
    assert len(resumed) == 27 - start
    assert torch.equal(torch.cat([batch["images"] for batch in resumed]), images[6 * start :])
    assert torch.equal(torch.cat([batch["labels"] for batch in resumed]), labels[6 * start :])


def test_training_images_are_windows_and_mirror_images_that_change_with_the_epoch(train):
    images, labels = whole(train, 2 * SAMPLES // 6 + 1)
    crops, seen = images.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy(), {}
    for position, (crop, label) in enumerate(zip(crops, labels.tolist(), strict=True)):
        full = np.asarray(PIL.Image.open(io.BytesIO(picture(label))))
        forms = {full[:, x : x + 6][:, ::way].tobytes(): (x, way) for x in range(4) for way in (1, -1)}
        drawn = uniform_draws(4, position // SAMPLES, [label])[0]  # by the sample, wherever it comes in the epoch
        assert forms[crop.tobytes()] == (int(drawn[1] * 4), -1 if drawn[0] < 0.5 else 1)
        seen.setdefault(label, []).append(forms[crop.tobytes()])
    assert {form for forms in seen.values() for form in forms} == {(x, way) for x in range(4) for way in (1, -1)}
    assert sum(forms[0] != forms[1] for forms in seen.values()) > SAMPLES / 2


def test_no_process_reads_a_block_twice_but_where_lanes_meet(train, monkeypatch):
    reads = []
    read = type(train)._read
    monkeypatch.setattr(type(train), "_read", lambda self, number: [reads.append(number), read(self, number)][1])
    for rank in range(2):
        list(training_batches(train, batch_size=2, seed=0, start_step=0, stop_step=36, rank=rank, world_size=2))
    assert set(reads) <= set(range(len(train.counts)))
    # of the two lanes each reads its own; a window's end within a block, and the lanes' border, are read again
    assert len(reads) <= len(train.counts) + 1
    reads.clear()
    list(training_batches(train, batch_size=2, seed=0, start_step=30, stop_step=31))
    assert len(reads) <= 8


def test_more_workers_than_places_and_batches_that_do_not_fit(train):
    images, labels = whole(train, 2, batch_size=2, num_workers=3)
    alone = whole(train, 2, batch_size=2)
    assert torch.equal(images, alone[0]) and torch.equal(labels, alone[1])
    run = {"seed": 0, "start_step": 0, "stop_step": 1}
    assert "74 is not in 1..73" in message(lambda: training_batches(train, batch_size=74, **run))
    assert "not a multiple of 4" in message(lambda: training_batches(train, batch_size=6, world_size=4, **run))


def test_fingerprint_follows_shards(tmp_path):
    def printed(name, shards, **options):
        folder = write_shards(tmp_path / name, "tar", shards=shards)
        return load_images(DataConfig(name=str(folder), streaming=True, image_size=6, **options), "train").fingerprint()

    prints = [printed("a", [2, 3]), printed("c", [3, 2]), printed("d", [5]), printed("a", [2, 3], channels=1)]
    prints.append(printed("a", [2, 3], resize_to=8))
    assert len({*prints, printed("b", [2, 3])}) == 5


def test_fingerprint_follows_the_columns_that_are_read_and_not_their_place(tmp_path):
    images = [[picture(n) for n in numbers] for numbers in (range(4), range(4, 8))]
    columns = {"a": images[0], "b": images[0], "label": [0, 1, 2, 3], "coarse": [0, 0, 1, 1]}
    for name in ("original", "copy"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "train.parquet")

    def printed(name="original", image_column="a", label_column="label"):
        return stream(tmp_path / name, image_column=image_column, label_column=label_column).fingerprint()

    prints = [printed(), printed(image_column="b"), printed(label_column="coarse")]
    assert len(set(prints)) == 3 and printed("copy") == prints[0]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
@pytest.mark.parametrize("replaced", ["label", "images"])
def test_fingerprint_follows_a_replaced_shard_of_equal_length(tmp_path, kind, replaced):
    prints, lengths = [], []
    for name, image, label in (("a", 0, 1), ("b", *((0, 2) if replaced == "label" else (3, 1)))):
        folder, content = tmp_path / name, picture(image)
        folder.mkdir()
        if kind == "tar":
            write_tar(folder / "train.tar", {"0.png": content, "0.cls": str(label).encode()})
        else:
            table = pa.table({"image": [content], "label": [label]})
            pq.write_table(table, folder / "train.parquet", compression="none", use_dictionary=False)
        prints.append(stream(folder, image_column="image", label_values="ids").fingerprint())
        lengths.append(next(folder.iterdir()).stat().st_size)
    assert lengths[0] == lengths[1] and prints[0] != prints[1]


# Sources


def stream(folder, split="train", **options):
    return load_images(DataConfig(name=str(folder), streaming=True, **{"image_size": 6, **options}), split)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_splits_by_folder_or_by_name_or_none(tmp_path, kind):
    write_shard(tmp_path / "folders" / "train", kind, "0000", range(3))
    write_shard(tmp_path / "folders" / "val", kind, "0000", range(2))
    assert (len(stream(tmp_path / "folders")), len(stream(tmp_path / "folders", "test"))) == (3, 2)
    assert all(len(stream(tmp_path / "folders", "test", test_split=name)) == 2 for name in ("val", "validation"))
    assert "'test' is missing" in message(lambda: stream(tmp_path / "folders", test_split="test"))
    write_shard(tmp_path / "names", kind, "imagenet1k-train-0000", range(3))
    write_shard(tmp_path / "names", kind, "imagenet1k-test-0000", range(2))
    write_shard(tmp_path / "names", kind, "imagenet1k-validation-0000", range(1))
    assert [len(stream(tmp_path / "names", "test", test_split=name)) for name in (None, "test", "validation")] == [
        2,
        2,
        1,
    ]
    write_shard(tmp_path / "none", kind, "0000", range(3))
    assert len(stream(tmp_path / "none")) == 3
    assert "no test split" in message(lambda: stream(tmp_path / "none", "test"))
    write_shard(tmp_path / "none", kind, "train1", range(3))
    assert "is of no split" in message(lambda: stream(tmp_path / "none"))


def test_an_address_is_streamed_like_a_folder(config, train):
    memory, place = fsspec.filesystem("memory"), f"/shards-{train.shards[0].file.path[-3:]}"
    for shard in train.shards:
        memory.pipe(f"{place}/{shard.file.path}", shard.file.open().read())
    remote = load_images(DataConfig(**{**vars(config), "name": f"memory:/{place}"}), "train")
    assert all(torch.equal(*pair) for pair in zip(whole(remote, 14), whole(train, 14), strict=True))
    assert remote.fingerprint() == train.fingerprint()
    text = message(lambda: load_images(DataConfig(name=f"memory:/{place}"), "train"))
    assert "data.streaming" in text


def test_class_names_are_those_stored_in_parquet(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])})
    columns = {"image": [{"bytes": picture(0), "path": None}] * 2, "label": [0, 1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")
    assert stream(tmp_path).class_names == ["cat", "dog", "eel"]
    named = features | {"label": datasets.ClassLabel(names=["cat", "dog"])}
    datasets.Dataset.from_dict(columns, features=datasets.Features(named)).to_parquet(tmp_path / "train2.parquet")
    assert "train2.parquet names other classes" in message(lambda: stream(tmp_path))


def test_plain_columns_without_statistics_and_without_labels(tmp_path):
    table = pa.table({"png": [picture(0), picture(1)], "kind": pa.array([3, 1], pa.int32())})
    pq.write_table(table, tmp_path / "train.parquet", write_statistics=False)
    assert stream(tmp_path, image_column="png").class_names == ["image"]
    found = stream(tmp_path, image_column="png", label_column="kind", label_values="ids")
    assert found.labels.tolist() == [3, 1] and found.num_classes == 4
    assert [item["labels"].item() for item in (found[0], found[1])] == [3, 1]
    assert "data.image_column" in message(lambda: stream(tmp_path))
    write_tar(tmp_path / "train.tar", {"a.png": picture(0), "b.c.png": b"", "b.jpg": picture(1), "._a.png": b"x"})
    (tmp_path / "train.parquet").unlink()
    assert stream(tmp_path).class_names == ["image"] and len(stream(tmp_path)) == 2


def test_a_tar_is_gone_through_once_until_it_changes(tmp_path, monkeypatch):
    write_shards(tmp_path, "tar", shards=[4])
    scans = []
    scan = tar_shards._scan
    monkeypatch.setattr(tar_shards, "_scan", lambda file: [scans.append(file), scan(file)][1])
    assert [len(stream(tmp_path, image_size=size)) for size in (5, 6)] == [4, 4] and len(scans) == 1
    write_shards(tmp_path, "tar", shards=[5])
    (tmp_path / "train-00000-of-00001.tar").touch()
    assert len(stream(tmp_path)) == 5 and len(scans) == 2


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_are_indexed_once_for_both_splits(tmp_path, monkeypatch, kind):
    write_shards(tmp_path, kind, "train", [2, 3])
    write_shards(tmp_path, kind, "validation", [1])
    indexed, index = [], getattr(streamed_splits, f"index_{kind}")
    monkeypatch.setattr(streamed_splits, f"index_{kind}", lambda *of: [indexed.append(of[0].path), index(*of)][1])
    assert [len(stream(tmp_path, split)) for split in ("train", "test")] == [5, 1] and len(indexed) == 3
    assert len(stream(tmp_path, label_column="label")) == 5 and len(indexed) == 6


# Errors


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_shard_that_is_cut_off_is_named(tmp_path, kind, share):
    write_shards(tmp_path, kind, shards=[4, 30])
    file = tmp_path / f"train-00001-of-00002.{kind}"
    content = file.read_bytes().rstrip(b"\0") if kind == "tar" else file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert message(lambda: stream(tmp_path)).startswith(f"shard {file} cannot be read: ")


def test_a_tar_cut_off_between_members_is_named(tmp_path):
    write_shards(tmp_path, "tar", shards=[4])
    file = next(tmp_path.iterdir())
    with tarfile.open(file) as archive:
        member = archive.getmembers()[6]
    file.write_bytes(file.read_bytes()[: member.offset])
    assert f"shard {file} cannot be read: it is cut off" in message(lambda: stream(tmp_path))


def test_what_a_parquet_shard_may_lack(tmp_path):
    def written(name, **columns):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "train.parquet")
        return tmp_path / name

    image = {"image_column": "image"}
    folder = written("no-image", text=["x"])
    assert f"shard {folder / 'train.parquet'}" in message(lambda: stream(folder))
    assert "holds string, no images" in message(lambda: stream(folder, image_column="text"))
    folder = written("null-image", image=[picture(0), None], label=[0, 1])
    assert "image 1 of shard" in (text := message(lambda: stream(folder, **image)[1])) and "is missing" in text
    folder = written("null-label", image=[picture(0)] * 2, label=[0, None])
    assert "has no label in row 1" in message(lambda: stream(folder, **image))
    folder = written("minus", image=[picture(0)] * 2, label=[0, -1])
    text = message(lambda: stream(folder, **image))
    assert "label -1" in text and "data.test_split" in text and str(folder) in text
    folder = written("words", image=[picture(0)], label=["cat"])
    assert "not integers" in message(lambda: stream(folder, **image))
    folder = written("broken", image=[picture(0), b"broken"], label=[0, 1])
    data = stream(folder, **image)
    expected = f"image 1 of shard {folder / 'train.parquet'} cannot be decoded"
    assert message(lambda: data[1]).startswith(expected)
    run = {"batch_size": 2, "seed": 0, "start_step": 0, "stop_step": 1}
    assert message(lambda: list(training_batches(data, **run, num_workers=1))).startswith(expected)
    data = stream(folder, **image)
    (folder / "train.parquet").unlink()
    assert f"shard {folder / 'train.parquet'} cannot be read" in message(lambda: data[0])


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a.cls": b"0", "b.png": b"", "b.cls": b"0"}, "no image (.jpg, .jpeg, .png, .webp) for '/a'"),
        ({"a.png": b"", "a.cls": b"0", "b.cls": b"0"}, "no image (.jpg, .jpeg, .png, .webp) for '/b'"),
        ({"a.png": b"", "a.jpg": b"", "a.cls": b"0"}, "several images for '/a'"),
        ({"a.png": b"", "a.cls": b"cat"}, "the label b'cat' for '/a', not an integer"),
        ({"a.png": b"", "a.cls": b""}, "the label b'' for '/a', not an integer"),
        ({"a.png": b"", "a.cls": b"\0\xff"}, "not an integer"),
        (
            {"a.png": b"", "a.cls": b"%d" % 2**63},
            "the label b'9223372036854775808' for '/a', not an integer of 64 bits",
        ),
        ({"a.png": b"", "a.cls": b"-%d" % 2**63}, "not an integer of 64 bits"),
        ({"a.png": b"", "a.cls": b"1" * 5000}, "a .cls of 5,000 bytes for '/a', not an integer"),
        ({"a.png": b"", "a.cls": b"%d" % 10**12}, "label 1000000000000, which is no class; number the classes"),
        ({"a.png": b"", "a.cls": b"0", "b.png": b""}, "no .cls for sample 1"),
    ],
)
def test_what_a_tar_shard_may_lack(tmp_path, members, expected):
    write_tar(tmp_path / "train.tar", members)
    text = message(lambda: stream(tmp_path))
    assert text.startswith(f"shard {tmp_path / 'train.tar'} ") and expected in text


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.bmp", "a.txt", "b.bmp", "b.txt"], [".bmp", ".txt"]),
        (["a.cls", "a.tif", "b.JXL", "b.cls"], [".cls", ".tif", ".jxl"]),
        (["a", "b"], ["no ending"]),
        (["a.cls", "b.png", "b.cls"], ["'/a', only .cls"]),
        (["a.png", "a.cls", "x/b.gif"], ["'x/b', only .gif"]),
        (["img.0001.png", "img.0002.png"], [".0001.png", "first dot"]),
        ([f"a.{index}" for index in range(40)], [".0, .1, .2, .3, .4 and 35 others"]),
    ],
    ids=str,
)
def test_a_tar_without_an_image_names_the_endings_that_it_has(tmp_path, names, found):
    write_tar(tmp_path / "train.tar", dict.fromkeys(names, b"0"))
    text = message(lambda: stream(tmp_path))
    assert all(part in text for part in found) and "--sort=name" not in text


@pytest.mark.parametrize(
    "order",
    [
        ["a.png", "b.png", "c.png", "a.cls", "b.cls", "c.cls"],
        ["a.cls", "b.cls", "c.cls", "a.png", "b.png", "c.png"],
        ["a.cls", "b.cls", "a.png", "b.png"],
        ["a.png", "a.cls", "b.png", "b.cls", "a.json"],
        ["x/a.png", "x/b.png", "x/b.cls", "x/a.cls"],
    ],
    ids=" ".join,
)
def test_members_of_a_tar_that_are_apart_are_told_with_the_remedy_which_is_one(tmp_path, order):
    content = {name: picture(0) if name.endswith("png") else b"0" for name in order}
    write_tar(tmp_path / "train.tar", content)
    text = message(lambda: stream(tmp_path))
    assert text.startswith(f"shard {tmp_path / 'train.tar'} ") and "tar --sort=name" in text and "a'" in text
    (tmp_path / "train.tar").unlink()
    write_tar(tmp_path / "train-sorted.tar", dict(sorted(content.items())))
    assert len(stream(tmp_path)) == len({name.partition(".")[0] for name in order})


@pytest.mark.parametrize("size", [2**40, 2**28, -512, -(2**20)])
@pytest.mark.parametrize("ending", ["png", "json"])
def test_a_tar_whose_sizes_lie_is_named(tmp_path, size, ending):
    """A size below 0, which base-256 allows, would lead back to the same header."""
    write_tar(tmp_path / "train.tar", {"a.png": picture(0), f"b.{ending}": picture(1), "c.png": picture(2)})
    content = bytearray((tmp_path / "train.tar").read_bytes())
    header = content.index(f"b.{ending}".encode())
    content[header + 124 : header + 136] = (b"\x80" if size > 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = f"{sum(content[header : header + 512]):06o}\0 ".encode()
    (tmp_path / "train.tar").write_bytes(content)
    text = message(lambda: stream(tmp_path))
    assert f"shard {tmp_path / 'train.tar'}" in text and ("cannot be read" in text or "bytes, more than" in text)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (pa.array([0, 2**64 - 1], pa.uint64()), "no class"),
        (pa.array([0, 2**62]), f"has label {2**62}, which is no class; number the classes from 0 on"),
        (pa.array([-(2**63), 0]), f"has label -{2**63}, which is no class"),
    ],
)
@pytest.mark.parametrize("statistics", [True, False])
def test_labels_that_are_no_numbers_of_classes(tmp_path, labels, expected, statistics):
    table = pa.table({"image": [picture(0)] * 2, "label": labels})
    pq.write_table(table, tmp_path / "train.parquet", write_statistics=statistics)
    assert expected in message(lambda: stream(tmp_path, image_column="image"))
    whole = DataConfig(name=str(tmp_path), image_size=6, image_column="image")
    assert "no class" in message(lambda: load_images(whole, "train"))


def test_labels_that_the_footer_does_not_tell_of(tmp_path):
    pq.write_table(pa.table({"image": [picture(0)] * 2, "label": [0, 1]}), tmp_path / "train.parquet")
    data = stream(tmp_path, image_column="image")
    data.shards[0].label_range = (0, 0)  # what a footer that lies would lead to
    for use in (lambda: data[0], lambda: data.labels):
        assert "has labels outside 0..0, which its footer gives" in message(use)


def test_a_single_tar_by_its_own_name(tmp_path):
    write_tar(tmp_path / "images.tar", {f"{index}.png": picture(index) for index in range(3)})
    assert len(stream(tmp_path / "images.tar", split="train")) == 3


def test_some_shards_have_labels(tmp_path):
    write_tar(tmp_path / "train-0.tar", {"a.png": picture(0), "a.cls": b"0"})
    write_tar(tmp_path / "train-1.tar", {"a.png": picture(0)})
    assert "train-1.tar has no labels" in message(lambda: stream(tmp_path))


def test_what_cannot_be_streamed(tmp_path):
    assert "'digits' cannot be streamed" in message(lambda: stream("digits"))
    assert "holds no .parquet or .tar files" in message(lambda: stream(tmp_path))
    assert "'nowhere://x'" in message(lambda: stream("nowhere://x"))
    write_shard(tmp_path, "tar", "test-0", range(2))
    assert "no train split, only test" in message(lambda: stream(tmp_path))
    assert "data.shuffle_buffer is 0" in message(lambda: stream(tmp_path, shuffle_buffer=0))
    write_shard(tmp_path, "tar", "train-0", [])
    assert "'train'" in message(lambda: stream(tmp_path))
