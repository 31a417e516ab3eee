"""Images by name or folder: what is read, as which pixels, in which order, and what is said when it cannot be."""

import io
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from tokenizer.data import (
    DataConfig,
    DataError,
    StepBatches,
    epoch_order,
    evaluation_batches,
    load_images,
    training_batches,
)
from tokenizer.data import dataset as image_dataset
from tokenizer.data.image_column import ImageColumn


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path_factory, monkeypatch):
    """What `datasets` prepares from a folder goes to a temporary folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))


@pytest.fixture(scope="module")
def digits():
    return {split: load_images(DataConfig(), split) for split in ("train", "test")}


def noise(seed, size=(8, 8), channels=3):
    """A random image, (width, height) as PIL counts."""
    shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write(folder, names, size=(8, 8), channels=3):
    """One random image for each name; returns them by name."""
    images = {name: noise(seed, size, channels) for seed, name in enumerate(names)}
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return images


def write_parquet(folder, split, columns, features):
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(folder / f"{split}-0.parquet")


def load(folder, split="train", **options):
    return load_images(DataConfig(name=str(folder), **options), split)


def pixels(item):
    """An item's uint8 (H, W, C), from float in [-1, 1]; exact or an error."""
    values = (item["images"].double() + 1) * 127.5
    assert (values - values.round()).abs().max() < 1e-4
    return values.round().byte().permute(1, 2, 0).numpy()


def message(call):
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and "Traceback" not in text
    return text


def indices(batches):
    return [index for batch in batches for index in batch]


# Sources


def test_digits_are_two_disjoint_stratified_splits_that_cover_all(digits):
    train, test = digits["train"], digits["test"]
    assert (len(train), len(test)) == (1437, 360)
    assert (train.image_size, train.channels, train.num_classes) == (32, 1, 10)
    assert train.class_names == [str(digit) for digit in range(10)]
    counts = torch.stack([torch.bincount(split.labels, minlength=10) for split in (train, test)])
    share = counts[1] / counts.sum(0)
    assert (share - 360 / 1797).abs().max() < 0.01

    from sklearn.datasets import load_digits

    seen = {split: [pixels(item).tobytes() for item in digits[split]] for split in digits}
    assert not set(seen["train"]) & set(seen["test"])
    small = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    enlarged = [PIL.Image.fromarray(digit).resize((32, 32), PIL.Image.Resampling.BICUBIC).tobytes() for digit in small]
    assert sorted(seen["train"] + seen["test"]) == sorted(enlarged)


def test_digits_carry_the_label_of_their_image(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    by_pixels = {}
    for digit, target in zip(source.images, source.target, strict=True):
        image = PIL.Image.fromarray(np.rint(digit * (255 / 16)).astype(np.uint8))
        by_pixels[image.resize((32, 32), PIL.Image.Resampling.BICUBIC).tobytes()] = target
    for item in digits["test"]:
        assert by_pixels[pixels(item).tobytes()] == item["labels"]


def test_items_and_batches_have_the_stated_types(digits):
    item = digits["test"][0]
    assert item["images"].dtype == torch.float32 and item["images"].shape == (1, 32, 32)
    assert item["labels"].dtype == torch.int64 and item["labels"].shape == ()
    batches = list(evaluation_batches(digits["test"], batch_size=100))
    assert [len(batch["images"]) for batch in batches] == [100, 100, 100, 60]
    images = torch.cat([batch["images"] for batch in batches])
    assert images.min() == -1 and images.max() == 1 and images.is_contiguous()
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), digits["test"].labels)
    assert torch.equal(images, torch.stack([item["images"] for item in digits["test"]]))


def test_folder_of_class_folders_holds_out_every_tenth_image(tmp_path):
    images = write(tmp_path, [f"{animal}/{i:02}.png" for animal in ("cat", "dog") for i in range(12)])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.class_names == test.class_names == ["cat", "dog"]
    held_out = sorted(epoch_order(24, 0, 0)[9::10].tolist())
    kept = [row for row in range(24) if row not in held_out]
    names = sorted(images)
    for split, rows in ((train, kept), (test, held_out)):
        assert len(split) == len(rows)
        for item, row in zip(split, rows, strict=True):
            assert np.array_equal(pixels(item), np.asarray(images[names[row]]))
            assert item["labels"] == ["cat", "dog"].index(names[row][:3])


def test_training_images_are_held_out_in_place_of_the_test_split(tmp_path):
    images = write(
        tmp_path, [f"{part}/{animal}/{i}.png" for part in ("train", "test") for animal in "ab" for i in "0123"]
    )
    train, held_out = load(tmp_path, hold_out=3), load(tmp_path, "test", hold_out=3)
    names = sorted(name for name in images if name.startswith("train"))
    chosen = sorted(epoch_order(8, 0, 0)[:3].tolist())
    for split, rows in ((train, [row for row in range(8) if row not in chosen]), (held_out, chosen)):
        assert split.labels.tolist() == [row // 4 for row in rows]
        for item, row in zip(split, rows, strict=True):
            assert np.array_equal(pixels(item), np.asarray(images[names[row]]))
    # A result names its images by the split: these are not the test split's.
    assert (train.split, held_out.split) == ("train", "hold-out-3") and load(tmp_path, "test").split == "test"


def test_as_many_images_as_there_are_cannot_be_held_out(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(4)])
    assert len(load(tmp_path, hold_out=3)) == 1
    assert "has 4 training images; set it to fewer" in message(lambda: load(tmp_path, hold_out=4))


def test_flat_folder_is_one_class(tmp_path):
    write(tmp_path, [f"{i:02}.png" for i in range(10)])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (len(train), len(test)) == (9, 1)
    assert train.class_names == ["image"] and train.labels.tolist() == [0] * 9


@pytest.mark.parametrize("held_out", ["test", "validation", "val"])
def test_train_and_test_folders(tmp_path, held_out):
    images = write(tmp_path, [f"{part}/{animal}/0.png" for part in ("train", held_out) for animal in ("cat", "dog")])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]
    assert np.array_equal(pixels(train[1]), np.asarray(images["train/dog/0.png"]))
    assert np.array_equal(pixels(test[0]), np.asarray(images[f"{held_out}/cat/0.png"]))


def test_a_relative_folder_may_be_called_like_a_format(tmp_path, monkeypatch):
    write(tmp_path / "csv", [f"{i}.png" for i in range(2)])
    monkeypatch.chdir(tmp_path)
    assert len(load("csv")) == 2


def test_train_and_test_folders_without_classes_are_one_class(tmp_path):
    write(tmp_path, [f"{part}/{i}.png" for part in ("train", "test") for i in range(3)])
    assert load(tmp_path).class_names == ["image"] and load(tmp_path, "test").labels.tolist() == [0, 0, 0]


def test_a_class_that_the_test_split_lacks_is_still_a_class(tmp_path):
    write(tmp_path, ["train/cat/0.png", "train/dog/0.png", "test/dog/0.png"])
    test = load(tmp_path, "test")
    assert test.class_names == ["cat", "dog"] and test.labels.tolist() == [1]


def test_parquet_folder(tmp_path):
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b"])}
    for split, seeds in (("train", range(6)), ("test", range(6, 9))):
        columns = {"picture": [noise(seed) for seed in seeds], "kind": [seed % 2 for seed in seeds]}
        write_parquet(tmp_path, split, columns, features)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1] and test.class_names == ["a", "b"]
    assert np.array_equal(pixels(test[2]), np.asarray(noise(8)))


def test_integer_and_string_labels_share_classes_between_splits(tmp_path):
    features = {"image": datasets.Image(), "labels": datasets.Value("int32"), "word": datasets.Value("string")}
    write_parquet(tmp_path, "train", {"image": [noise(0)] * 2, "labels": [2, 0], "word": ["oak", "elm"]}, features)
    write_parquet(tmp_path, "test", {"image": [noise(1)] * 2, "labels": [3, 1], "word": ["ash", "elm"]}, features)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.class_names == test.class_names == ["0", "1", "2", "3"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 0], [3, 1])
    train, test = load(tmp_path, label_column="word"), load(tmp_path, "test", label_column="word")
    assert train.class_names == test.class_names == ["ash", "elm", "oak"]
    assert (train.labels.tolist(), test.labels.tolist()) == ([2, 1], [0, 1])


def test_plain_bytes_are_images_when_their_column_is_named(tmp_path):
    buffer = io.BytesIO()
    noise(5).save(buffer, format="png")
    write_parquet(tmp_path, "train", {"png": [buffer.getvalue()]}, {"png": datasets.Value("binary")})
    assert np.array_equal(pixels(load(tmp_path, image_column="png")[0]), np.asarray(noise(5)))


# Pixels


def one_image(tmp_path, image, suffix="png", **save_options):
    (tmp_path / "one").mkdir()
    image.save(tmp_path / "one" / f"image.{suffix}", **save_options)
    return tmp_path / "one"


def over_white(colour, alpha):
    return np.rint((np.asarray(colour, dtype=float) * alpha + 255.0 * (255 - alpha)) / 255).astype(np.uint8)


def luma(red, green, blue):
    return round(0.299 * red + 0.587 * green + 0.114 * blue)


def palette_image():
    image = PIL.Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 1, 0])
    return image


def cases():
    """name, image, save options, the expected (2, 2, 3) pixels, the channels that are inferred."""
    a, b = (10, 20, 30), (200, 100, 50)

    def grid(first, second):
        return np.array([[first, second], [second, first]], dtype=np.uint8)

    def made(mode, first, second):
        image = PIL.Image.new(mode, (2, 2))
        image.putdata([first, second, second, first])
        return image

    yield "L", made("L", 7, 250), {}, grid((7,) * 3, (250,) * 3), 1
    yield "1", made("1", 0, 255), {}, grid((0,) * 3, (255,) * 3), 1
    yield "RGB", made("RGB", a, b), {}, grid(a, b), 3
    yield "RGBA", made("RGBA", (*a, 128), (*b, 0)), {}, grid(over_white(a, 128), (255,) * 3), 3
    yield "LA", made("LA", (40, 64), (90, 255)), {}, grid((over_white(40, 64),) * 3, (90,) * 3), 3
    yield "P", palette_image(), {}, grid(a, b), 3
    yield "P-transparent", palette_image(), {"transparency": 0}, grid((255,) * 3, b), 3
    yield "L-transparent", made("L", 7, 250), {"transparency": 7}, grid((255,) * 3, (250,) * 3), 1
    wide = PIL.Image.fromarray(np.array([[129 * 257 + 128, 129 * 257 + 129], [0, 65535]], dtype=np.uint16))
    yield "I;16", wide, {}, np.repeat(np.array([[[129], [130]], [[0], [255]]], dtype=np.uint8), 3, axis=2), 1
    yield "I", wide.convert("I"), {"suffix": "tiff"}, np.repeat(np.uint8([[[129], [130]], [[0], [255]]]), 3, 2), 1
    cmyk = made("CMYK", (0, 255, 255, 0), (0, 0, 0, 255))
    yield "CMYK", cmyk, {"suffix": "tiff"}, grid((255, 0, 0), (0, 0, 0)), 3
    lab = made("LAB", (100, 150, 30), (200, 100, 90))
    yield "LAB", lab, {"suffix": "tiff"}, np.asarray(lab.convert("RGB")), 3


@pytest.mark.parametrize(("image", "options", "expected", "channels"), [pytest.param(*c[1:], id=c[0]) for c in cases()])
def test_every_mode_converts_to_rgb_and_grey(tmp_path, image, options, expected, channels):
    folder = one_image(tmp_path, image, **options)
    assert load(folder).channels == channels
    assert np.array_equal(pixels(load(folder, channels=3)[0]), expected)
    grey = np.array([[luma(*map(int, pixel)) for pixel in row] for row in expected], dtype=np.uint8)
    assert np.array_equal(pixels(load(folder, channels=1)[0])[..., 0], grey)


def test_exif_orientation_is_applied(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned a quarter clockwise
    folder = one_image(tmp_path, noise(3), exif=exif)
    assert np.array_equal(pixels(load(folder)[0]), np.rot90(np.asarray(noise(3)), -1))


@pytest.mark.parametrize("size", [(21, 12), (12, 21)])
def test_centre_crop_without_resizing_keeps_the_central_pixels(tmp_path, size):
    folder = one_image(tmp_path, noise(0, size))
    full = np.asarray(noise(0, size))
    expected = full[:, 4:16] if size[0] > size[1] else full[4:16]
    assert np.array_equal(pixels(load(folder, image_size=12)[0]), expected)


def test_larger_images_are_resized_with_antialiasing_by_the_short_side(tmp_path):
    image = noise(0, (48, 30))
    expected = image.resize((16, 10), PIL.Image.Resampling.BICUBIC).crop((3, 0, 13, 10))
    assert np.array_equal(pixels(load(one_image(tmp_path, image), image_size=10)[0]), np.asarray(expected))
    # a checkerboard of single pixels averages out; without antialiasing it would not
    board = PIL.Image.fromarray(np.uint8(np.indices((64, 64)).sum(0) % 2 * 255))
    board.save(tmp_path / "one" / "image.png")
    assert np.abs(pixels(load(tmp_path / "one", image_size=8)[0]).astype(int) - 127)[2:-2, 2:-2].max() <= 2


def test_first_image_decides_the_size_and_larger_ones_follow(tmp_path):
    write(tmp_path, ["0.png"], size=(8, 8))
    noise(1, (24, 16)).save(tmp_path / "1.png")
    train = load(tmp_path)
    assert train.image_size == 8 and train[1]["images"].shape == (3, 8, 8)


# Order


def test_epoch_order_is_a_permutation_and_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = epoch_order(100, 3, 4)
    torch.manual_seed(2)
    np.random.default_rng().random()
    assert torch.equal(first, epoch_order(100, 3, 4)) and first.dtype == torch.int64
    assert sorted(first.tolist()) == list(range(100))
    others = [epoch_order(100, seed, epoch) for seed, epoch in ((3, 5), (4, 4), (4, 3), (0, 7), (7, 0))]
    assert all(not torch.equal(first, other) for other in others)
    assert not torch.equal(others[3], others[4])


def test_each_epoch_visits_each_index_at_most_once_and_drops_the_remainder():
    batches = list(StepBatches(23, 5, seed=0, start_step=0, stop_step=12))
    epochs = [indices(batches[first : first + 4]) for first in (0, 4, 8)]
    for number, epoch in enumerate(epochs):
        assert len(epoch) == len(set(epoch)) == 20
        assert epoch == epoch_order(23, 0, number)[:20].tolist()


@pytest.mark.parametrize("start", [1, 4, 7, 12])
def test_resumed_order_is_the_tail_of_the_whole_run(start):
    whole = list(StepBatches(23, 5, seed=1, start_step=0, stop_step=12))
    resumed = StepBatches(23, 5, seed=1, start_step=start, stop_step=12)
    assert list(resumed) == whole[start:] and len(resumed) == 12 - start


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batch_of_a_single_process(world_size):
    run = {"num_samples": 40, "batch_size": 12, "seed": 5, "start_step": 2, "stop_step": 9}
    shares = [list(StepBatches(**run, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert all(len(batch) == 12 // world_size for share in shares for batch in share)
    assert [indices(parts) for parts in zip(*shares, strict=True)] == list(StepBatches(**run))


def test_workers_change_neither_batches_nor_the_global_random_state(digits):
    run = {"batch_size": 16, "seed": 9, "start_step": 85, "stop_step": 93}  # across the end of an epoch, at step 89
    before = torch.get_rng_state()
    alone = list(training_batches(digits["train"], **run))
    helped = list(training_batches(digits["train"], **run, num_workers=2))
    list(evaluation_batches(digits["test"], batch_size=200))
    assert torch.equal(before, torch.get_rng_state())
    assert len(alone) == len(helped) == 8
    expected = list(StepBatches(1437, **run))
    for one, other, rows in zip(alone, helped, expected, strict=True):
        assert torch.equal(one["images"], other["images"]) and torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["labels"], digits["train"].labels[rows])
        assert torch.equal(one["images"][3], digits["train"][rows[3]]["images"])


# Crops and flips


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    """12 images of 9x7 in a folder, and the data set of their 6x6 crops."""
    folder = tmp_path_factory.mktemp("crops")
    images = write(folder, [f"train/{i:02}.png" for i in range(12)] + ["test/0.png"], (9, 7))
    return [np.asarray(image) for image in images.values()], folder


def window_of(crop, full):
    """Where in an image a crop comes from, and whether it is mirrored; an error where it is no window of it."""
    windows = np.lib.stride_tricks.sliding_window_view(full, (6, 6), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    found = [(*place, way) for place in np.ndindex(2, 4) for way in (1, -1) if (windows[place][:, ::way] == crop).all()]
    assert len(found) == 1
    return found[0]


def test_training_images_are_random_windows_and_held_out_ones_the_centre(augmented):
    images, folder = augmented
    options = {"image_size": 6, "resize_to": 0, "crop": "random", "flip": True}
    train, test = (load(folder, split, **options) for split in ("train", "test"))
    seen = []
    run = {"batch_size": 5, "seed": 1, "start_step": 0, "stop_step": 40}  # 20 epochs
    rows = indices(StepBatches(12, **run))
    shown = torch.cat([batch["images"] for batch in training_batches(train, **run)])
    for image, row in zip(shown, rows, strict=True):
        seen.append(window_of(pixels({"images": image}), images[row]))
    assert len(set(seen)) == 16 and abs(np.mean([way for *_, way in seen])) < 0.25
    assert np.array_equal(pixels(test[0]), images[-1][:6, 1:7])
    assert np.array_equal(pixels(train[3]), images[3][:6, 1:7])
    still = load(folder, image_size=6, resize_to=0)
    assert train.fingerprint() == still.fingerprint() != load(folder, image_size=6).fingerprint()


@pytest.mark.parametrize(("world_size", "num_workers", "start"), [(1, 2, 0), (2, 0, 0), (3, 1, 0), (1, 0, 3)])
def test_crops_and_flips_are_those_of_one_process(augmented, world_size, num_workers, start):
    train = load(augmented[1], image_size=6, crop="random", flip=True)
    run = {"batch_size": 6, "seed": 1, "stop_step": 5}
    expected = list(training_batches(train, **run, start_step=0))[start:]
    shares = [
        list(training_batches(train, **run, start_step=start, rank=r, world_size=world_size, num_workers=num_workers))
        for r in range(world_size)
    ]
    for batch, *parts in zip(expected, *shares, strict=True):
        assert torch.equal(batch["images"], torch.cat([part["images"] for part in parts]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 8, "resize_to": 6}, "data.resize_to is 6, less than data.image_size 8"),
        ({"image_size": 8, "resize_to": -1}, "data.resize_to is -1"),
        ({"resize_to": 6}, "set data.image_size"),
        ({"crop": "middle"}, "data.crop is middle; set it to center or random"),
        ({"test_split": "train"}, "data.test_split is train"),
        ({"hold_out": -1}, "data.hold_out is -1; set it to 0"),
        ({"hold_out": 5, "test_split": "test"}, "data.hold_out is 5 and data.test_split is 'test'"),
        ({"hold_out": 5, "streaming": True}, "shards that are streamed are held out as a whole; set it to 0"),
        ({"test_split": "dev"}, "data.test_split 'dev' is missing: data set 'digits' has the splits train, test"),
    ],
)
def test_options_that_contradict_each_other(options, expected):
    assert expected in message(lambda: load_images(DataConfig(**options), "train"))


def test_the_held_out_split_may_be_named(tmp_path):
    """ImageNet's test split on the Hub has the label -1 throughout."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    for split, labels in (("train", [0, 1]), ("validation", [1]), ("test", [-1, -1, -1])):
        write_parquet(tmp_path, split, {"image": [noise(0)] * len(labels), "label": labels}, features)
    assert load(tmp_path, "test", test_split="validation").labels.tolist() == [1]
    assert "has label -1" in message(lambda: load(tmp_path, "test"))


# Fingerprint


def test_fingerprint_follows_the_data_and_not_their_place(tmp_path):
    names = [f"{animal}/{i}.png" for animal in ("cat", "dog") for i in range(3)]
    original = tmp_path / "original"
    write(original, names)
    expected = load(original).fingerprint()
    assert len(bytes.fromhex(expected)) == 32
    assert load(original).fingerprint() == expected

    def edited(edit):
        copy = tmp_path / edit.__name__
        shutil.copytree(original, copy)
        edit(copy)
        return load(copy).fingerprint()

    def only_copy(folder):
        pass

    def change_one_pixel(folder):
        image = PIL.Image.open(folder / "dog" / "1.png")
        image.putpixel((2, 5), tuple(value ^ 1 for value in image.getpixel((2, 5))))
        image.save(folder / "dog" / "1.png")

    def change_one_label(folder):  # the last cat becomes the first dog: same images, same order
        (folder / "cat" / "2.png").rename(folder / "dog" / "-.png")

    def change_order(folder):
        (folder / "cat" / "0.png").rename(folder / "cat" / "9.png")

    assert edited(only_copy) == expected
    prints = [edited(edit) for edit in (change_one_pixel, change_one_label, change_order)]
    prints += [load(original, image_size=4).fingerprint(), load(original, channels=1).fingerprint(), expected]
    assert len(set(prints)) == len(prints)


def test_fingerprint_knows_where_an_image_ends(tmp_path):
    prints = []
    for name, parts in (("a", [b"ab", b"c"]), ("b", [b"a", b"bc"])):
        images = [noise(0), *({"bytes": part, "path": None} for part in parts)]
        write_parquet(tmp_path / name, "train", {"image": images}, {"image": datasets.Image()})
        prints.append(load(tmp_path / name).fingerprint())
    assert prints[0] != prints[1]


def test_fingerprint_tells_splits_apart_and_is_computed_once(digits, monkeypatch):
    train, again = digits["train"], load_images(DataConfig(), "train")
    assert train.fingerprint() == again.fingerprint() != digits["test"].fingerprint()
    monkeypatch.setattr(type(train.encoded), "read", None)
    assert train.fingerprint() == again.fingerprint()


@pytest.mark.parametrize("stored", ["files", "parquet"])
def test_fingerprint_of_many_images_reads_all_lengths_and_labels_and_some_images(tmp_path, monkeypatch, stored):
    monkeypatch.setattr(image_dataset, "FINGERPRINT_WHOLE", 20)
    monkeypatch.setattr(image_dataset, "FINGERPRINT_PART", 4)
    reads, read = [], ImageColumn.read
    monkeypatch.setattr(ImageColumn, "read", lambda self, row: [reads.append(row), read(self, row)][1])
    buffer = io.BytesIO()
    noise(0).save(buffer, format="png")
    contents = [buffer.getvalue(), *(f"image {i:02}".encode() for i in range(1, 30))]

    def printed(name, changed=(), cats=15):
        known, labels = {**dict(enumerate(contents)), **dict(changed)}, [0] * cats + [1] * (30 - cats)
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        if stored == "files":
            for i, content in [*known.items(), (30, contents[0])]:
                file = tmp_path / name / (f"train/{features['label'].names[labels[i]]}" if i < 30 else "test/cat")
                file.mkdir(parents=True, exist_ok=True)
                (file / f"{i:02}.png").write_bytes(content)
        else:
            columns = {"image": [{"bytes": content, "path": None} for content in known.values()], "label": labels}
            write_parquet(tmp_path / name, "train", columns, features)
            write_parquet(tmp_path / name, "test", {key: values[:1] for key, values in columns.items()}, features)
        data = load(tmp_path / name)
        reads.clear()
        fingerprint = data.fingerprint()
        assert reads == [0, 9, 19, 29]
        return fingerprint

    expected = printed("same")
    assert printed("again") == expected
    prints = [printed("longer", {5: b"image  05"}), printed("other", {9: b"image 99"}), printed("label", cats=14)]
    assert len({*prints, expected}) == 4
    assert printed("unread", {5: b"image 99"}) == expected


# Errors


def test_broken_image_gives_one_line_that_names_the_file(tmp_path):
    write(tmp_path, [f"{i}.png" for i in range(5)])
    whole = (tmp_path / "3.png").read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:], b"no image at all"):
        (tmp_path / "3.png").write_bytes(content)
        data = load(tmp_path)
        text = message(lambda data=data: data[3])
        assert text.startswith(f"image {tmp_path / '3.png'} cannot be decoded: ")
        assert "replace" in text and " at 0x" not in text
    for num_workers in (0, 1):
        batches = evaluation_batches(data, batch_size=5, num_workers=num_workers)
        assert message(lambda batches=batches: list(batches)) == text


def test_truncated_jpeg_is_an_error_not_a_half_grey_image(tmp_path):
    write(tmp_path, ["0.jpg"], size=(64, 64))
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(whole[: len(whole) // 2])
    assert f"image {tmp_path / '0.jpg'} cannot be decoded: " in message(lambda: load(tmp_path))


def test_broken_image_in_parquet_is_named_by_its_row(tmp_path):
    images = [noise(0), {"bytes": b"broken", "path": None}, None]
    write_parquet(tmp_path, "train", {"image": images}, {"image": datasets.Image()})
    data = load(tmp_path)
    assert message(lambda: data[1]).startswith("image in row 1 of split 'train' cannot be decoded")
    assert message(lambda: data[2]).startswith("row 2 of split 'train' has no image in column 'image'")


def test_image_that_vanished_is_named(tmp_path):
    write(tmp_path, ["0.png", "1.png"])
    data = load(tmp_path)
    (tmp_path / "1.png").unlink()
    assert str(tmp_path / "1.png") in message(lambda: data[1])
    assert str(tmp_path / "1.png") in message(data.fingerprint)


def test_images_that_are_too_small_or_of_unknown_range(tmp_path):
    folder = one_image(tmp_path, noise(0, (20, 12)))
    text = message(lambda: load(folder, image_size=16)[0])
    assert all(part in text for part in (str(folder / "image.png"), "20x12", "16x16", "data.image_size"))
    assert "20x12, not square; set data.image_size" in message(lambda: load(folder))
    (folder / "image.png").unlink()
    PIL.Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(folder / "image.tiff")
    assert "70000..70000" in message(lambda: load(folder)[0])
    PIL.Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(folder / "image.tiff")
    assert "float" in message(lambda: load(folder)[0])


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (DataConfig(name="no-such-set"), ["'no-such-set'", "neither digits, mnist, cifar10, clothing", "Hub"]),
        (DataConfig(name="someone/no-such-set"), ["'someone/no-such-set'", "Hub"]),
        (DataConfig(name="./no-such-folder"), ["'./no-such-folder'", "folder"]),
        (DataConfig(name="~/no-such-folder"), ["'~/no-such-folder'", "folder"]),
        (DataConfig(name="/no-such-folder"), ["'/no-such-folder'", "folder"]),
        (DataConfig(image_size=0), ["data.image_size", "0"]),
        (DataConfig(channels=2), ["data.channels", "2"]),
        (DataConfig(image_column="picture"), ["data.image_column", "'picture'", "image, label"]),
        (DataConfig(label_column="kind"), ["data.label_column", "'kind'", "image, label"]),
    ],
)
def test_wrong_config(config, parts):
    text = message(lambda: load_images(config, "train"))
    assert all(part in text for part in parts), text


def test_a_path_is_never_looked_up_on_the_hub(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked for a missing folder"))
    assert "'./missing/folder'" in message(lambda: load("./missing/folder"))


@pytest.mark.parametrize(("name", "hub_id"), [("mnist", "ylecun/mnist"), ("cifar10", "uoft-cs/cifar10")])
def test_short_names_stand_for_hub_ids(name, hub_id, monkeypatch):
    def unreachable(asked):
        raise ConnectionError(f"no way to {asked}\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    expected = f"data set '{name}' could not be loaded from the Hub: no way to {hub_id}; "
    assert message(lambda: load(name)).startswith(expected)


def test_folders_that_are_no_data_set(tmp_path):
    assert f"{str(tmp_path)!r} cannot be loaded" in message(lambda: load(tmp_path))
    (tmp_path / "train-0.parquet").write_bytes(b"no parquet")
    assert "Parquet" in message(lambda: load(tmp_path))
    assert "folder" in message(lambda: load(tmp_path / "train-0.parquet"))
    write(tmp_path / "only", [f"test/{i}.png" for i in range(3)])
    assert "no train split, only test" in message(lambda: load(tmp_path / "only"))


def test_no_held_out_image(tmp_path):
    write(tmp_path / "few", [f"{i}.png" for i in range(9)])
    assert len(load(tmp_path / "few")) == 9
    text = message(lambda: load(tmp_path / "few", "test"))
    assert "9 images and no test split" in text and "at least 10" in text


def test_empty_split(tmp_path):
    write_parquet(tmp_path, "train", {"image": [noise(0)]}, {"image": datasets.Image()})
    write_parquet(tmp_path, "test", {"image": []}, {"image": datasets.Image()})
    text = message(lambda: load(tmp_path, "test"))
    assert "'test'" in text and "no rows" in text


def test_ambiguous_or_unusable_columns(tmp_path):
    image, label = datasets.Image(), datasets.ClassLabel(names=["a", "b"])

    def written(name, columns, features):
        write_parquet(tmp_path / name, "train", columns, features)
        return tmp_path / name

    images = [noise(0), noise(1)]
    features = {"img": image, "fine": label, "coarse": label}
    folder = written("two-labels", {"img": images, "fine": [0, 1], "coarse": [1, 0]}, features)
    text = message(lambda: load(folder))
    assert "fine, coarse" in text and "data.label_column" in text
    assert load(folder, label_column="coarse").labels.tolist() == [1, 0]

    folder = written("two-images", {"left": images, "right": images[::-1]}, {"left": image, "right": image})
    text = message(lambda: load(folder))
    assert "left, right" in text and "data.image_column" in text
    assert np.array_equal(pixels(load(folder, image_column="right")[0]), np.asarray(noise(1)))

    folder = written("no-images", {"text": ["x"]}, {"text": datasets.Value("string")})
    text = message(lambda: load(folder))
    assert "text" in text and "data.image_column" in text

    features = {"image": image, "age": datasets.Value("int64"), "weight": datasets.Value("float32")}
    folder = written("values", {"image": images, "age": [3, -1], "weight": [0.5, 1.5]}, features)
    assert "'age'" in message(lambda: load(folder, label_column="age"))
    assert "'weight'" in message(lambda: load(folder, label_column="weight"))
    assert "'age'" in message(lambda: load(folder, image_column="age"))
    assert load(folder).class_names == ["image"]

    folder = written("null", {"image": images, "label": [0, None]}, {"image": image, "label": label})
    text = message(lambda: load(folder))
    assert f"row 1 of {folder / 'train-0.parquet'} has no label in column 'label'" in text


def test_batches_that_do_not_fit(digits):
    run = {"seed": 0, "start_step": 0, "stop_step": 1}
    assert "361" in message(lambda: training_batches(digits["test"], batch_size=361, **run))
    assert "batch size 0" in message(lambda: training_batches(digits["test"], batch_size=0, **run))
    text = message(lambda: training_batches(digits["test"], batch_size=10, world_size=4, **run))
    assert "10" in text and "multiple of 4" in text
    assert "rank 2" in message(lambda: training_batches(digits["test"], batch_size=10, rank=2, world_size=2, **run))
