"""An extracted ImageNet is read as `datasets` reads it; any other layout is left to it."""

import datasets
import PIL.Image
import pytest

from tokenizer.class_folders import read_class_folders
from tokenizer.data import DataConfig, DataError, load_images

FILES = [
    "train/n02/b.JPEG",
    "train/n02/a.png",
    "train/n02-x/0.jpg",  # sorted by path, "-" comes before "/"
    "train/n01/c.jpg",
    "val/n03/0.png",
    "val/n01/1.png",
]


def write(folder, files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (4, 4)).save(folder / file)
    return folder


@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test"])
def test_the_tables_are_those_of_datasets(tmp_path, held_out):
    write(tmp_path, [file.replace("val/", f"{held_out}/") for file in FILES])
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01 tench")
    ours, theirs = read_class_folders(tmp_path), datasets.load_dataset(str(tmp_path))
    assert set(ours) == set(theirs) and len(ours) == 2
    for split, table in theirs.items():
        assert ours[split].features == table.features
        assert ours[split].data.column("image").to_pylist() == table.data.column("image").to_pylist()
        assert ours[split].data.column("label").to_pylist() == table.data.column("label").to_pylist()


@pytest.mark.parametrize(
    "other",
    ["0.png", "extra/n01/0.png", "val/0.png", "val/n01/deep/0.png", "validation/n01/0.png", "train/__n/0.png"],
)
def test_other_layouts_are_left_to_datasets(tmp_path, other):
    write(tmp_path, [*FILES, other])
    if "/" in other:
        assert read_class_folders(tmp_path) is None
    assert read_class_folders(write(tmp_path / "test-only", ["test/n01/0.png"])) is None
    (tmp_path / "train" / "n01" / "notes.txt").write_text("")
    assert read_class_folders(tmp_path) is None


def test_a_folder_with_metadata_is_left_to_datasets(tmp_path):
    write(tmp_path, FILES)
    (tmp_path / "metadata.csv").write_text("file_name,text")
    assert read_class_folders(tmp_path) is None


def test_images_come_without_asking_datasets(tmp_path, monkeypatch):
    write(tmp_path, FILES)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("every file would be matched with patterns"))
    train, test = (load_images(DataConfig(name=str(tmp_path)), split) for split in ("train", "test"))
    assert train.class_names == ["n01", "n02", "n02-x", "n03"] == test.class_names
    assert train.labels.tolist() == [0, 2, 1, 1] and test.labels.tolist() == [0, 3]
    assert len(train.fingerprint()) == 64 and train[0]["images"].shape == (3, 4, 4)


@pytest.mark.parametrize("named", ["val", "valid", "validation"])
@pytest.mark.parametrize("folder", ["val", "validation"])
def test_the_validation_split_has_one_name(tmp_path, folder, named):
    write(tmp_path, [*(file.replace("val/", f"{folder}/") for file in FILES), "test/n01/0.png"])
    assert len(load_images(DataConfig(name=str(tmp_path), test_split=named), "test")) == 2
    with pytest.raises(DataError, match=r"data\.test_split 'dev' is missing"):
        load_images(DataConfig(name=str(tmp_path), test_split="dev"), "test")
