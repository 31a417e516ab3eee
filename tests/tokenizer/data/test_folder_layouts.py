"""Folders as people have them -> the images of each split and the classes, or the words of the refusal.

A row is what lies in the folder, and what is expected: (training images, held-out images, class names), with what the
data line says besides; or the words of the one error. `{n}` in a path stands for the numbers 0 to n - 1.
"""

import io
import os
import re
import zipfile
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenizer.data import DataConfig, DataError, load_splits
from tokenizer.data.decoding import image_suffixes
from tokenizer.data.folders import files as found_files

NONE = ("image",)
CAT_DOG = ("cat", "dog")
ANIMALS = ["cat/{10}.png", "dog/{10}.png"]  # of 20 images two are held out
SPLITS = ["train/cat/{3}.png", "train/dog/{2}.png", "test/cat/{2}.png", "test/dog/{1}.png"]


def moved(files, **names):
    """The same files, their top folders called otherwise."""
    return [re.sub(r"^\w+", lambda top: names.get(top[0], top[0]), file) for file in files]


# fmt: off
LAYOUTS = {
    # Splits by the names of top-level folders, in any case
    "flat": (["{20}.png"], (18, 2, NONE, "held out: every tenth image")),
    "nine images": (["{9}.png"], (9, 0, NONE)),
    "class folders": (ANIMALS, (18, 2, CAT_DOG)),
    "train and test": (SPLITS, (5, 3, CAT_DOG)),
    "train alone": (["train/cat/{10}.png", "train/dog/{10}.png"], (18, 2, CAT_DOG)),
    "flat splits": (["train/{4}.png", "test/{3}.png"], (4, 3, NONE)),
    **{
        f"{train} and {test}": (moved(SPLITS, train=train, test=test), (5, 3, CAT_DOG))
        for train, test in [
            ("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing"), ("training", "val"), ("train", "Valid"),
            ("train", "validation"), ("train", "eval"), ("Training", "Evaluation"), ("train", "dev"),
        ]
    },
    "test before val": (["train/{4}.png", "val/{3}.png", "test/{2}.png"], (4, 2, NONE, "3 of split validation")),
    "val before dev": (["train/{4}.png", "dev/{3}.png", "val/{2}.png"], (4, 2, NONE, "3 of split dev")),
    "train and training": (["train/a/{2}.png", "training/a/{2}.png", "test/a/0.png"], "train and training of.*merge"),
    "val and valid": (["train/{2}.png", "val/{2}.png", "Valid/{2}.png"], "Valid and val of .* both the validation"),
    "test alone": (["test/{3}.png"], "no train split, only test"),
    "an empty test folder": ([*ANIMALS, "test/notes.txt"], (18, 2, CAT_DOG, r"1 unreadable name \(\.txt\)")),
    # Words in names that are no split
    "words in file names": (["train station {5}.jpg", "crash-test-{5}.png", "val_{5}.jpg", "dev {5}.png"],
                            (18, 2, NONE)),
    "words in class names": (["bullet train/{10}.png", "test tube/{5}.png", "crash-test/{5}.png"],
                             (18, 2, ("bullet train", "crash-test", "test tube"))),
    "words in classes of splits": (["train/train/{3}.png", "train/test/{3}.png", "test/train/{2}.png"],
                                   (6, 2, ("test", "train"))),
    "trains and tests": (["trains/{5}.png", "tests/{5}.png"], (9, 1, ("tests", "trains"))),
    "train-2019": (["train-2019/{5}.png", "train-2020/{5}.png"], (9, 1, ("train-2019", "train-2020"))),
    "a split's word deeper": (["cat/test pictures/{5}.png", "dog/train set/{5}.png"], (9, 1, CAT_DOG)),
    "a class called train": (["train/{4}.png", "car/{4}.png", "bus/{4}.png"], r"8 images beside.*bus \(4\), car \(4\)"),
    "a class called test": (["test/{4}.png", "cat/{4}.png"], "images beside its splits test.*folder called train"),
    "a picture beside the splits": ([*SPLITS, "cover.png"], r"1 images beside.*no folder \(1\)"),
    "pictures of the documentation": ([*SPLITS, "docs/{2}.png"], r"2 images beside.*docs \(2\)"),
    "strays beside the splits": ([*SPLITS, "labels.txt", "README.md", "annotations/{2}.xml"],
                                 (5, 3, CAT_DOG, r"4 unreadable names \(\.md, \.txt, \.xml\)")),
    # Splits under another name
    "sets": (["training_set/cats/{3}.png", "test_set/cats/{2}.png"], "training_set and test_set of .* two splits"),
    "a prefix": (["seg_train/a/{3}.png", "seg_test/a/{2}.png", "seg_pred/{2}.png"], "seg_train and seg_test"),
    "years": (["train2017/{3}.jpg", "val2017/{2}.jpg"], "train2017 and val2017"),
    "domains": (["trainA/{3}.png", "trainB/{3}.png", "testA/{3}.png", "testB/{3}.png"], "trainA and testA"),
    "years of one split": (["train2017/{5}.png", "train2018/{5}.png"], (9, 1, ("train2017", "train2018"))),
    # Deeper folders
    "images folders": (["train/cat/images/{3}.png", "train/dog/images/{2}.png", "test/cat/images/0.png"],
                       (5, 1, CAT_DOG)),
    "train below each class": (["cat/train/{10}.png", "dog/train/{10}.png"], (18, 2, CAT_DOG)),
    "splits below each class": (["cat/train/{3}.png", "cat/test/{2}.png", "dog/train/{2}.png"],
                                "splits test, train of.* lie in cat, not at its top; move them up"),
    "splits below one folder": (["archive/Train/a/{3}.png", "archive/VAL/a/{2}.png"], "lie in archive.*data.name"),
    "inner folders belong to the first": (["a/x/{5}.png", "a/y/{5}.png", "b/x/{10}.png"], (18, 2, ("a", "b"))),
    "one wrapper": (["archive/cat/{5}.png", "archive/dog/{5}.png"],
                    (9, 1, ("archive",), "archive holds the folders cat, dog")),
    "one wrapper of two floors": (["data/x/cat/{5}.png", "data/x/dog/{5}.png"],
                                  (9, 1, ("data",), "data/x holds the folders cat, dog")),
    "one class": (["train/only/{3}.png", "test/only/{2}.png"], (3, 2, ("only",))),
    "depth of one class differs": (["cat/{5}.png", "cat/more/deep/{5}.png", "dog/a/b/c/{10}.png"], (18, 2, CAT_DOG)),
    "images beside classes": (["cat/{5}.png", "dog/{5}.png", "0.png"], "1 images beside its class folders cat, dog"),
    "images beside classes of a split": (["train/cat/{5}.png", "train/x.png", "test/cat/0.png"], "such as x.png"),
    "a test split without classes": (["train/cat/{3}.png", "test/{3}.png"], "'test'.*no labels.*data.test_split"),
    "a train split without classes": (["train/{3}.png", "test/cat/{3}.png"], "'test'.*has labels.*data.label_column"),
    # Classes
    "a class in the test split alone": (["train/cat/{3}.png", "test/cat/0.png", "test/dog/{2}.png"],
                                        (3, 3, CAT_DOG, "no training image of 1 of 2 classes: dog")),
    "one image per class": ([f"class {number:03}/0.png" for number in range(20)],
                            (18, 2, tuple(f"class {number:03}" for number in range(20)))),
    "unicode": (["train/猫/{3}.png", "train/naïve café/{2}.png", "test/猫/画像{2}.png"],
                (5, 2, ("naïve café", "猫"))),
    "one name in two spellings": (["train/caf\u00e9/{3}.png", "test/cafe\u0301/{2}.png"], (3, 2, ("caf\u00e9",))),
    "two names that differ in case": (["train/Cat/{3}.png", "test/cat/{2}.png"],
                                      (3, 2, ("Cat", "cat"), "no training image of 1 of 2 classes: cat")),
    "spaces and dots": (["train/ a b /{2}.png", "train/v1.0/{2}.png", "test/v1.0/0.png"], (4, 1, (" a b ", "v1.0"))),
    "numbers as names": (["10/{5}.png", "2/{5}.png"], (9, 1, ("10", "2"))),
    "underscores": (["__other__/{5}.png", "_x/{5}.png"], (9, 1, ("__other__", "_x"))),
    "a class called image": (["image/{5}.png", "picture/{5}.png"], (9, 1, ("image", "picture"))),
    "a line break in a name": (["a\nb/{5}.png", "c/{5}.png"], (9, 1, ("a\nb", "c"))),
    # Which files are images
    "upper and mixed case": (["a/{5}.Jpg", "a/x{5}.JPG", "a/y{5}.jpg", "a/z{5}.PnG"], (18, 2, ("a",))),
    "every ending": ([f"{number}{suffix}" for number, suffix in enumerate(sorted(image_suffixes()))],
                     (len(image_suffixes()) - len(image_suffixes()) // 10, len(image_suffixes()) // 10, NONE)),
    "two dots": (["a.b.c.{10}.tar.png"], (9, 1, NONE)),
    "names that are not read": (["{9}.png", "a.heic", "b.xyz", "c"],
                                (9, 0, NONE, r"left out: 3 unreadable names \(\.heic, \.xyz, no ending\)")),
    "hidden": (["{9}.png", ".DS_Store", "._0.png", ".thumbnails/{3}.png", ".ipynb_checkpoints/0-checkpoint.png",
                "__MACOSX/._0.png", "@eaDir/0.png"], (9, 0, NONE, "left out: 8 hidden")),
    "hidden in classes and splits": ([*SPLITS, "train/.git/x.png", "train/cat/._0.png"], (5, 3, CAT_DOG, "2 hidden")),
    "a split that is hidden": (["train/{9}.png", ".test/{3}.png"], (9, 0, NONE, "3 hidden")),
    # Folders without images
    "nothing": ([], "it is empty; set data.name"),
    "nothing but hidden": ([".cache/{2}.png"], "empty, but for 2 hidden files"),
    "other files": (["a.txt", "b.npy"], r"2 files, of \.npy, \.txt, none that an image"),
    "an archive": (["images.zip"], r"of \.zip; unpack the \.zip first"),
    "a tar": (["shard-{2}.tar"], "set data.streaming to true"),
    "an archive beside images": (["{9}.png", "images.zip"], (9, 0, NONE, r"1 unreadable name \(\.zip\)")),
    "images and parquet": (["{9}.png", "train.parquet"], "9 images and 1 parquet files, such as train.parquet"),
}
# fmt: on


def expanded(path):
    """The paths that a pattern stands for."""
    found = re.search(r"\{(\d+)\}", path)
    return [path] if found is None else [path.replace(found[0], str(number)) for number in range(int(found[1]))]


def make(folder, files):
    """Write small images, each another; a file whose ending is no image's holds text."""
    paths = [path for pattern in files for path in expanded(pattern)]
    for number, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in image_suffixes():
            PIL.Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(file, "PNG")
        else:
            file.write_text("text")
    return folder


@pytest.mark.parametrize(("files", "expected"), [pytest.param(*row, id=name) for name, row in LAYOUTS.items()])
def test_a_folder_is_read_as_its_folders_say(tmp_path, files, expected):
    check(make(tmp_path, files), expected)


def check(folder, expected, **options):
    config = DataConfig(name=str(folder), **options)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=expected) as refused:
            load_splits(config)
        assert "\n" not in str(refused.value)
        return
    train, held_out, class_names, *said = expected
    splits = load_splits(config)
    assert (len(splits.train), tuple(splits.train.class_names)) == (train, class_names)
    line = str(splits)
    assert line.startswith(f"data: {train} train, {held_out} held out, ") and "\n" not in line
    assert all(re.search(part, line) for part in said), line
    if not held_out:
        with pytest.raises(DataError, match="no test split"):
            _ = splits.held_out
        return
    assert len(splits.held_out) == held_out and tuple(splits.held_out.class_names) == class_names
    assert not set(paths_of(splits.train)) & set(paths_of(splits.held_out))
    assert {class_names[label] for label in splits.train.labels.tolist()} <= set(class_names)


def paths_of(images):
    """Where the images of a split lie."""
    column = images.encoded.table.data.column(images.encoded.column)
    return [column[int(row)]["path"].as_py() for row in images.rows]


def test_every_image_has_the_class_of_its_folder(tmp_path):
    splits = load_splits(DataConfig(name=str(make(tmp_path, SPLITS))))
    for images in (splits.train, splits.held_out):
        for path, label in zip(paths_of(images), images.labels.tolist(), strict=True):
            assert Path(path).parent.name == images.class_names[label]


# Links


def test_links_to_class_folders_are_followed(tmp_path):
    make(tmp_path / "elsewhere", ["dog/{10}.png", "one.png"])
    folder = make(tmp_path / "data", ["cat/{9}.png"])
    (folder / "dog").symlink_to(tmp_path / "elsewhere" / "dog", target_is_directory=True)
    (folder / "cat" / "x.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    check(folder, (18, 2, CAT_DOG))


def test_a_link_to_a_folder_above_it_is_no_endless_walk(tmp_path):
    folder = make(tmp_path, ["cat/{9}.png"])
    (folder / "cat" / "again").symlink_to(folder, target_is_directory=True)
    check(folder, (9, 0, ("cat",), "1 link to a folder that it lies in"))


@pytest.mark.parametrize("link", ["folder", "file", "hard"])
def test_a_file_in_both_splits_is_refused(tmp_path, link):
    folder = make(tmp_path, ["train/{3}.png", "test/9.png"])
    if link == "folder":
        (folder / "test" / "9.png").unlink()
        (folder / "test").rmdir()
        (folder / "test").symlink_to(folder / "train", target_is_directory=True)
    elif link == "file":
        (folder / "test" / "0.png").symlink_to(folder / "train" / "0.png")
    else:
        os.link(folder / "train" / "0.png", folder / "test" / "0.png")
    check(folder, r"train/0\.png and .*test/0\.png are one file")


def test_a_file_that_comes_twice_is_refused_where_every_tenth_image_is_held_out(tmp_path):
    folder = make(tmp_path, ["a/{10}.png"])
    (folder / "b").symlink_to(folder / "a", target_is_directory=True)
    check(folder, "are one file, which would be trained on and held out")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    folder = make(tmp_path, ["{9}.png"])
    (folder / "z.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"z\.png cannot be read"):
        load_splits(DataConfig(name=str(folder))).train.fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_in_both_splits_is_refused(tmp_path, streaming):
    write_parquet(tmp_path / "elsewhere.parquet", {"text": ["x"] * 3})
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}-0.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    check(tmp_path / "data", "are one file", streaming=streaming)


def test_links_to_folders_of_shards_are_followed(tmp_path):
    write_parquet(tmp_path / "elsewhere" / "0.parquet", {"text": ["x"] * 2})
    write_parquet(tmp_path / "data" / "train" / "0.PARQUET", {"text": ["x"] * 3})
    (tmp_path / "data" / "test").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    for streaming in (False, True):
        splits = load_splits(DataConfig(name=str(tmp_path / "data"), streaming=streaming))
        assert (len(splits.train), len(splits.held_out)) == (3, 2)


def test_one_number_for_all_files_is_no_overlap(tmp_path, monkeypatch):
    """As some network file systems list them."""
    folder = make(tmp_path, ["train/{3}.png", "test/{2}.png"])
    walk = found_files.walk_files
    monkeypatch.setattr(found_files, "walk_files", lambda *of: ((*found[:3], (1, 2**32 - 1)) for found in walk(*of)))
    check(folder, (3, 2, NONE))


def test_a_link_in_a_circle_is_named(tmp_path):
    folder = make(tmp_path, ["{9}.png"])
    (folder / "x.png").symlink_to(folder / "x.png")
    with pytest.raises(DataError, match=r"x\.png cannot be read"):
        load_splits(DataConfig(name=str(folder))).train.fingerprint()


def test_hidden_folders_need_not_be_readable(tmp_path, monkeypatch):
    folder = make(tmp_path, ["{9}.png", "lost+found/x", "cat.txt"])
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    check(folder, (9, 0, NONE, "1 hidden"))


def test_names_that_are_no_text(tmp_path):
    folder = make(tmp_path, ["{9}.png"])
    (folder / os.fsdecode(b"notes.t\xe9t")).touch()
    check(folder, (9, 0, NONE, "1 unreadable name"))
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png()["bytes"])
    check(folder, r"caf\\udce9\.png is not UTF-8; rename")


# Options


def test_the_held_out_split_may_have_a_name_of_its_own(tmp_path):
    folder = make(tmp_path, ["train/{3}.png", "Holdout/{2}.png", "test/{1}.png"])
    check(folder, "images beside its splits")
    check(folder, (3, 2, NONE, "1 of split test"), test_split="holdout")
    (folder / "Holdout").rename(folder / "hidden").rename(folder / ".hidden")
    check(folder, "'val' is missing: .* has the splits test, train", test_split="val")


@pytest.mark.parametrize("streaming", [False, True])
def test_no_name_is_no_folder(streaming):
    with pytest.raises(DataError, match=r"data\.name is ''; set it to"):
        load_splits(DataConfig(name="", streaming=streaming))


@pytest.mark.parametrize("name", ["images", "imagefolder", "csv", "parquet", "a/b/c", "data-set"])
def test_a_name_is_no_format_and_no_cached_data_set(tmp_path, monkeypatch, name):
    make(tmp_path / "here" / "images", ["{3}.png"])
    monkeypatch.chdir(tmp_path / "here" / "images")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it was asked for"))
    with pytest.raises(DataError, match=f"'{name}' is neither.*set data.name"):
        load_splits(DataConfig(name=name))


@pytest.mark.parametrize("name", ["images", "csv", "imagefolder", "my images"])
def test_a_folder_here_may_have_any_name(tmp_path, monkeypatch, name):
    make(tmp_path / name, ["{9}.png"])
    monkeypatch.chdir(tmp_path)
    assert len(load_splits(DataConfig(name=name)).train) == 9


# Metadata files


def with_metadata(folder, files, text, name="metadata.csv"):
    make(folder, files)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


ROWS = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(10))

METADATA = {
    "labels": (["{10}.png"], f"file_name,label\n{ROWS}", (9, 1, ("a", "b"))),
    "captions": (["{10}.png"], f"file_name,text\n{ROWS}", (9, 1, NONE)),
    "captions beside class folders": (
        ["cat/{5}.png", "dog/{5}.png"],
        "file_name,text\n" + "".join(f"{name}/{number}.png,x\n" for name in CAT_DOG for number in range(5)),
        (9, 1, CAT_DOG),
    ),
    "labels of images in one folder": (
        ["images/{10}.png"],
        "file_name,label\n" + "".join(f"images/{number}.png,{'ab'[number % 2]}\n" for number in range(10)),
        (9, 1, ("a", "b")),
    ),
    "fewer rows than images": (["{12}.png"], f"file_name,label\n{ROWS}", "10 of 12 images, not 2 such as .*10.png"),
    "an image that is not there": (["{9}.png"], f"file_name,label\n{ROWS}", "lists 1 images that are not there.*9.png"),
    "an image twice": (["{10}.png"], f"file_name,label\n{ROWS}0.png,a\n", "1 images more than once"),
    "no file_name": (["{10}.png"], f"image,label\n{ROWS}", "no column file_name, only image, label"),
    "labels by both": (
        ["cat/{5}.png", "dog/{5}.png"],
        "file_name,label\n" + "".join(f"{name}/{number}.png,x\n" for name in CAT_DOG for number in range(5)),
        "class folders, such as cat.*column 'label'",
    ),
    "another name for labels": (["{10}.png"], f"file_name,category\n{ROWS}", "category may hold the labels"),
    "a column twice": (["{2}.png"], "file_name,label,label\n0.png,a,b\n1.png,a,b\n", "several columns of one name"),
    "nothing but a header": (["{2}.png"], "file_name,label\n", "lists 0 of 2 images"),
    "a very long name": (["{2}.png"], f"file_name,label\n{'x' * 300}.png,a\n", "1 images that are not there"),
    "as Windows writes paths": (
        ["x/{10}.png"],
        "file_name,text\n" + "".join(f"x\\{n}.png,a\n" for n in range(10)),
        (9, 1, ("x",)),
    ),
    "a blank label": (["{2}.png"], "file_name,label\n0.png, \n1.png,b\n", "row 0 .* no label"),
    "one label in two spellings": (
        ["{2}.png"],
        "file_name,label\n0.png,caf\u00e9\n1.png,cafe\u0301\n",
        (2, 0, ("caf\u00e9",)),
    ),
    "a label missing": (["{2}.png"], "file_name,label\n0.png,\n1.png,3\n", "row 0 .* no label"),
    "quotes and commas": (["{2}.png"], 'file_name,label\n0.png,"a, b"\n1.png,"c\nd"\n', (2, 0, ("a, b", "c\nd"))),
}


@pytest.mark.parametrize(("files", "text", "expected"), [pytest.param(*row, id=name) for name, row in METADATA.items()])
def test_a_metadata_file_speaks_of_every_image(tmp_path, files, text, expected):
    check(with_metadata(tmp_path, files, text), expected)


def test_metadata_of_each_split_and_as_json_lines(tmp_path):
    for split, number in (("train", 3), ("test", 2)):
        rows = "".join(f'{{"file_name": "{n}.png", "label": "{"xy"[n % 2]}"}}\n' for n in reversed(range(number)))
        with_metadata(tmp_path, [f"{split}/{{{number}}}.png"], rows, f"{split}/metadata.jsonl")
    check(tmp_path, (3, 2, ("x", "y")))
    splits = load_splits(DataConfig(name=str(tmp_path)))
    assert splits.train.labels.tolist() == [0, 1, 0] and splits.held_out.labels.tolist() == [1, 0]
    assert [Path(path).stem for path in paths_of(splits.held_out)] == ["1", "0"]  # in the order of the file


# Channels and pixels


@pytest.mark.parametrize("grey", [[0], [0, 1], [5], list(range(9)), list(range(10))])
def test_all_images_decide_on_the_channels(tmp_path, grey):
    for number in range(10):
        PIL.Image.new("L" if number in grey else "RGB", (4, 4)).save(tmp_path / f"{number}.png")
    splits = load_splits(DataConfig(name=str(tmp_path)))
    # image 7 of 10 is held out by the fixed order, and decides nothing
    held_out = Path(paths_of(splits.held_out)[0]).stem
    mixed = {number in grey for number in range(10) if str(number) != held_out}
    assert splits.train.channels == splits.held_out.channels == (1 if mixed == {True} else 3)
    assert f"{splits.train.channels} x 4 x 4" in str(splits)
    assert (" images grey, read as RGB" in str(splits)) == (len(mixed) == 2)


def test_a_large_set_is_sampled_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizer.data.SAMPLE", 4)
    check(make(tmp_path, ["train/{9}.png", "test/0.png"]), (9, 1, NONE, "channels by 4 of 9 images"))


def test_a_side_that_is_not_everyones_is_told(tmp_path):
    make(tmp_path, ["{9}.png"])
    PIL.Image.new("RGB", (9, 7)).save(tmp_path / "9.png")
    assert re.search(r"side of the first image, others have 4 to 7", str(load_splits(DataConfig(name=str(tmp_path)))))


@pytest.mark.parametrize("high", [1, 255])
def test_integers_of_32_bits_in_the_range_of_8_are_refused(tmp_path, high):
    PIL.Image.fromarray(np.full((4, 4), high, np.int32)).save(tmp_path / "0.tiff")
    with pytest.raises(DataError, match=rf"0\.tiff has integers of 32 bits up to {high}.*save it with 8"):
        load_splits(DataConfig(name=str(tmp_path)))
    PIL.Image.fromarray(np.full((4, 4), 65535, np.int32)).save(tmp_path / "0.tiff")
    assert load_splits(DataConfig(name=str(tmp_path))).train[0]["images"].min() == 1


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_integers_of_16_bits_in_the_range_of_8_are_refused(tmp_path, suffix):
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4) * 16
    PIL.Image.fromarray(pixels).save(tmp_path / f"0.{suffix}")
    with pytest.raises(DataError, match="bits up to 240"):
        load_splits(DataConfig(name=str(tmp_path)))
    PIL.Image.fromarray(pixels * 17).save(tmp_path / f"0.{suffix}")
    assert load_splits(DataConfig(name=str(tmp_path))).train.channels == 1


# Parquet


def png(value=0):
    content = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), (value, value, value)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def write_parquet(file, columns, label=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    number = len(next(iter(columns.values())))
    columns = {"image": [png(n) for n in range(number)], **columns}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    for column, names in (label or {}).items():
        table = table.cast_column(column, datasets.ClassLabel(names=names))
    table.to_parquet(file)


PARQUET = {
    "as the Hub": ({"train-00000-of-00002": 3, "train-00001-of-00002": 2, "test-00000-of-00001": 2}, (5, 2)),
    "as the Hub, with hashes": (
        {"data/train-00000-of-00001-5ab2c8d1e0f34567": 3, "data/test-00000-of-00001": 2},
        (3, 2),
    ),
    "folders": ({"default/train/0000": 3, "default/validation/0000": 2}, (3, 2)),
    "upper case": ({"Train": 3, "VAL": 2}, (3, 2)),
    "a name before": ({"birds-train-0": 3, "birds-test-0": 2}, (3, 2)),
    "no split": ({"part-0": 10, "part-1": 10}, (18, 2)),
    "words": ({"train station-0": 10, "test tube-0": 10}, (18, 2)),
    "the word first": ({"train_images": 3, "test_images": 2}, "train_images and test_images of .* may be two splits"),
    "the word in the middle": ({"birds_train_v2": 3, "birds_test_v2": 2}, "birds_train_v2 and birds_test_v2"),
    "sizes": ({"train-256px-0": 3, "val-256px-0": 2}, "train-256px-0 and val-256px-0"),
    "capitals": ({"trainA-0": 3, "testA-0": 2}, "trainA-0 and testA-0"),
    "an empty file beside another": ({"train-0": 3, "train-1": 0, "test-0": 2}, (3, 2)),
    "names that end alike": (
        {"bullet-train-1": 3, "crash-test-1": 2},
        "by their splits or not: bullet train, crash test; move them",
    ),
    "some": ({"train-0": 3, "extra-0": 2}, "extra-0.parquet of .* is of no split, as train are"),
    "two splits at once": ({"train/test-0": 3, "test/test-0": 1}, "folder of split train and is called test"),
    "test alone": ({"test-0": 3}, "no train split, only test"),
    "an unused split": ({"train": 3, "test": 2, "validation": 4}, (3, 2, "4 of split validation")),
    "unsplit and hidden": ({"a": 10, ".cache/train-0": 3}, (9, 1, "1 hidden")),
}


@pytest.mark.parametrize(("files", "expected"), [pytest.param(*row, id=name) for name, row in PARQUET.items()])
def test_parquet_files_are_of_the_split_that_they_name(tmp_path, files, expected):
    for name, number in files.items():
        write_parquet(tmp_path / f"{name}.parquet", {"text": ["x"] * number})
    if isinstance(expected, str):
        return check(tmp_path, expected)
    splits = load_splits(DataConfig(name=str(tmp_path)))
    assert (len(splits.train), len(splits.held_out)) == expected[:2]
    assert all(part in str(splits) for part in expected[2:])


@pytest.mark.parametrize("name", ["photos[1]", "p*", "photo?", "a{b}"])
def test_a_folder_of_parquet_is_no_pattern(tmp_path, name):
    for folder, number in (("photos1", 6), ("px", 5), ("photos", 4), ("ab", 3)):
        write_parquet(tmp_path / folder / "train.parquet", {"label": [0] * number})
    write_parquet(tmp_path / name / "train-[0].parquet", {"label": ["x", "y"]})
    write_parquet(tmp_path / name / "train-0.parquet", {"label": ["y"]})
    train = load_splits(DataConfig(name=str(tmp_path / name))).train
    assert len(train) == 3 and train.class_names == ["x", "y"]
    assert train.labels.tolist() == [1, 0, 1] and train[2]["images"].mean() > train[1]["images"].mean()


@pytest.mark.parametrize("dtype", [pa.dictionary(pa.int8(), pa.string()), pa.large_string(), pa.string()])
def test_texts_may_be_stored_in_any_way(tmp_path, dtype):
    table = pa.table({"image": [png()["bytes"]] * 3, "label": pa.array(["b", "a", "b"]).cast(dtype)})
    pq.write_table(table, tmp_path / "train.parquet")
    train = load_splits(DataConfig(name=str(tmp_path), image_column="image")).train
    assert train.class_names == ["a", "b"] and train.labels.tolist() == [1, 0, 1]


def test_a_test_split_without_labels_is_told_with_the_remedy(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"label": [0, 1]}, {"label": ["a", "b"]})
    write_parquet(tmp_path / "test.parquet", {"label": [-1, -1]})
    write_parquet(tmp_path / "val.parquet", {"label": [1]}, {"label": ["a", "b"]})
    table = pq.read_table(tmp_path / "test.parquet").replace_schema_metadata(
        pq.read_schema(tmp_path / "train.parquet").metadata
    )
    pq.write_table(table, tmp_path / "test.parquet")
    check(tmp_path, "label -1, which is no class.*data.test_split")
    assert len(load_splits(DataConfig(name=str(tmp_path), test_split="val")).held_out) == 1


def test_parquet_files_with_class_names_in_other_orders_agree(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", {"label": [0, 1]}, {"label": ["black", "white"]})
    write_parquet(tmp_path / "train-1.parquet", {"label": [0, 1]}, {"label": ["white", "black"]})
    write_parquet(tmp_path / "test-0.parquet", {"label": [0, 1, 2]}, {"label": ["grey", "white", "black"]})
    splits = load_splits(DataConfig(name=str(tmp_path)))
    assert splits.train.class_names == ["black", "white", "grey"]
    assert splits.train.labels.tolist() == [0, 1, 1, 0] and splits.held_out.labels.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    "column", ["class", "label_name", "fine_label", "Label", "category_id", "class_name", "target"]
)
@pytest.mark.parametrize("values", [[0, 1, 0], ["x", "y", "x"]])
def test_a_column_that_may_hold_labels_is_asked_for(tmp_path, column, values):
    write_parquet(tmp_path / "train.parquet", {column: values})
    check(tmp_path, f"{column} may hold the labels: set data.label_column")
    assert load_splits(DataConfig(name=str(tmp_path), label_column=column)).train.labels.tolist() == [0, 1, 0]
    assert load_splits(DataConfig(name=str(tmp_path), label_column="none")).train.class_names == ["image"]


@pytest.mark.parametrize("column", ["text", "width", "subclass_description", "url", "caption", "year"])
def test_other_columns_are_not_asked_for(tmp_path, column):
    write_parquet(tmp_path / "train.parquet", {column: ["a", "b", "a"]})
    check(tmp_path, (3, 0, NONE))


LABELS = {
    "from 0 on": ([0, 1, 2], None, ([0, 1, 2], 3)),
    "one class missing": ([0, 1, 3], None, ([0, 1, 3], 4)),
    "from 1 on": ([1, 2, 3], None, "1, 2, 3: as class ids.*distinct, by which 1 -> 0, 2 -> 1, 3 -> 2"),
    "sparse": ([0, 90210, 5], None, "0, 5, 90210: as class ids, 90208 of 90211"),
    "half of them missing": ([0, 3], None, "0, 3: as class ids, 2 of 4"),
    "negative": ([-1, 0], None, "label -1, which is no class"),
    "huge": ([0, 2**40], None, f"label {2**40}, which is no class"),
    "from 1 on, distinct": ([1, 3, 2], "distinct", ([0, 2, 1], 3)),
    "sparse, distinct": ([90210, 0, 5], "distinct", ([2, 0, 1], 3)),
    "negative, distinct": ([-1, 0, 7], "distinct", ([0, 1, 2], 3)),
    "from 1 on, ids": ([1, 2, 3], "ids", ([1, 2, 3], 4)),
    "sparse, ids": ([0, 900], "ids", ([0, 900], 901)),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("values", "option", "expected"), [pytest.param(*row, id=k) for k, row in LABELS.items()])
def test_integers_without_names_are_ids_or_are_refused(tmp_path, values, option, expected, streaming):
    write_parquet(tmp_path / "train.parquet", {"label": values})
    options = {"label_values": option, "streaming": streaming}
    if isinstance(expected, str):
        return check(tmp_path, expected, **options)
    train = load_splits(DataConfig(name=str(tmp_path), **options)).train
    assert train.labels.tolist() == expected[0] == [int(train[n]["labels"]) for n in range(len(values))]
    assert train.num_classes == len(train.class_names) == expected[1]
    if option == "distinct":
        assert [train.class_names[label] for label in train.labels] == list(map(str, values))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (4, 4, 4)])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "int32"])
def test_lists_of_integers_are_pixels(tmp_path, shape, dtype):
    pixels = (np.arange(np.prod(shape)) * 3 % 256).reshape(shape).astype(dtype)
    features = {"pixels": datasets.List(datasets.List(datasets.Value(dtype)))}
    if len(shape) == 3:
        features = {"pixels": datasets.List(datasets.List(datasets.List(datasets.Value(dtype))))}
    table = datasets.Dataset.from_dict({"pixels": [pixels.tolist()]}, features=datasets.Features(features))
    table.to_parquet(tmp_path / "train.parquet")
    train = load_splits(DataConfig(name=str(tmp_path), image_column="pixels")).train
    seen = ((train[0]["images"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    if shape[2:] != (4,):
        assert np.array_equal(seen.reshape(shape), pixels)
    assert train.channels == (1 if len(shape) == 2 or shape[2] == 1 else 3) and seen.max() > 40


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[0, 256]], r"pixels in 0\.\.256"),
        ([[-1, 5]], r"pixels in -1\.\.5"),
        ([[0.5, 0.2]], "float64 values"),
        ([1, 2, 3], r"shape \(3,\)"),
        ([[1, 2], [3]], "not of one length"),
    ],
)
def test_lists_that_are_no_pixels_are_refused(tmp_path, value, words):
    datasets.Dataset.from_dict({"pixels": [value]}).to_parquet(tmp_path / "train.parquet")
    check(tmp_path, words, image_column="pixels")


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    table = datasets.Dataset.from_dict({"image": [png(n) for n in range(10)], "label": [0, 1] * 5})
    table = table.cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"Train": table, "valid": table.select(range(3))}).save_to_disk(tmp_path / "dict")
    for name, numbers in (("one", (9, 1)), ("dict", (10, 3))):
        splits = load_splits(DataConfig(name=str(tmp_path / name)))
        assert (len(splits.train), len(splits.held_out)) == numbers and splits.train.num_classes == 2


def test_a_zip_of_images_is_not_taken_for_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.ZIP", "w") as archive:
        archive.writestr("cat/0.png", png()["bytes"])
    check(tmp_path, r"unpack the \.zip first")
