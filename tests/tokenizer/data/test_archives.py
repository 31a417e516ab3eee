"""The data set clothing: the archive of a repository, here a small one of the same layout in the download cache."""

import shlex
import shutil
import subprocess
import zipfile
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets.utils.file_utils import hash_url_to_filename

from tokenizer.data import DataConfig, DataError, load_images, load_splits
from tokenizer.data.archives import ARCHIVES

CLOTHING = ARCHIVES["clothing"]
TOP = f"clothing-dataset-small-{CLOTHING.commit}"
# The names of files are no order of the splits: merged, images of validation stand between those of train.
FILES = (
    *("train/hat/b.jpg", "train/hat/d.jpg", "train/t-shirt/b.jpg", "train/dress/a.jpg"),
    *("validation/hat/c.jpg", "validation/t-shirt/a.jpg", "test/hat/e.jpg", "test/dress/b.jpg"),
)


def message(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def checkout(tmp_path):
    """The repository's files in a folder."""
    for seed, name in enumerate(FILES):
        file = tmp_path / TOP / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # The files differ in size, as photographs do.
        shape = (20 + seed, 16, 3)
        PIL.Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)).save(file)
    (tmp_path / TOP / "README.md").write_text("photographs")
    return tmp_path / TOP


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of downloads; no test asks the network, which HF_HUB_OFFLINE forbids."""
    monkeypatch.setitem(ARCHIVES, "clothing", replace(CLOTHING, images=len(FILES)))
    folder = tmp_path / "downloads"
    folder.mkdir()
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", folder)
    return folder


@pytest.fixture
def downloaded(cache, checkout):
    """The archive as `datasets` stores it once it has come down."""
    file = cache / hash_url_to_filename(CLOTHING.address)
    with zipfile.ZipFile(file, "w") as archive:
        for path in checkout.rglob("*"):
            archive.write(path, path.relative_to(checkout.parent))
    return file


def clothing(name="clothing"):
    return load_splits(DataConfig(name=str(name), image_size=16))


def test_train_and_validation_are_trained_on_and_test_is_held_out(downloaded, checkout):
    splits = clothing()
    assert (len(splits.train), len(splits.held_out)) == (6, 2)
    assert splits.train.class_names == splits.held_out.class_names == ["dress", "hat", "t-shirt"]
    for images, folders in ((splits.train, ("train", "validation")), (splits.held_out, ("test",))):
        found = {}
        for row, label in zip(images.rows, images.labels, strict=True):
            encoded, _ = images.encoded.read(row)
            found[encoded] = images.class_names[label]
        expected = {(checkout / name).read_bytes(): name.split("/")[1] for name in FILES if name.startswith(folders)}
        assert found == expected


@pytest.mark.posix
def test_the_files_fetched_by_hand_are_the_same_data_set(downloaded, checkout, tmp_path):
    by_name = clothing()
    clone, enter, switch, *rest = CLOTHING.by_hand.split(" && ")
    assert clone == f"git clone {CLOTHING.repository}" and CLOTHING.commit.startswith(shlex.split(switch)[-1])
    folder = shutil.copytree(checkout, tmp_path / enter.removeprefix("cd "))
    subprocess.run(" && ".join(rest), shell=True, cwd=folder, check=True)
    by_hand = clothing(folder)
    assert by_name.train.fingerprint() == by_hand.train.fingerprint()
    assert by_name.held_out.fingerprint() == by_hand.held_out.fingerprint()
    assert "validation" not in str(by_hand)


def test_a_plain_checkout_leaves_validation_out_and_says_so(checkout):
    splits = clothing(checkout)
    assert (len(splits.train), len(splits.held_out)) == (4, 2)
    assert "2 of split validation" in str(splits)


def test_the_unpacked_files_are_found_without_the_archive(downloaded):
    clothing()
    downloaded.write_bytes(b"")  # not read again
    assert len(clothing().train) == 6


def test_an_unpacking_that_was_killed_is_not_taken_for_the_whole(downloaded, monkeypatch):
    one_file = zipfile.ZipFile.extract

    def killed(self, path=None, members=None, pwd=None):
        one_file(self, f"{TOP}/train/hat/b.jpg", path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", killed)
        with pytest.raises(KeyboardInterrupt):
            clothing()
    assert len(clothing().train) == 6


def test_a_process_that_unpacks_second_takes_what_the_first_one_has(downloaded, monkeypatch):
    whole, firsts = zipfile.ZipFile.extractall, []

    def overtaken(self, path=None, members=None, pwd=None):
        monkeypatch.setattr(zipfile.ZipFile, "extractall", whole)
        firsts.append(clothing())
        whole(self, path, members, pwd)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", overtaken)
    second = clothing()
    assert [first.train.fingerprint() for first in firsts] == [second.train.fingerprint()]
    assert len(list(downloaded.parent.iterdir())) == 2  # the archive and one folder, no part


def test_without_a_network_the_error_names_the_address_and_the_commands(cache):
    text = message(clothing)
    assert CLOTHING.address in text and CLOTHING.by_hand in text
    assert list(cache.iterdir()) == []


def test_a_download_that_is_no_archive_is_refused_and_not_kept(downloaded):
    downloaded.write_text("<html>log in first</html>")
    text = message(clothing)
    assert CLOTHING.address in text and CLOTHING.by_hand in text
    assert not downloaded.exists()


def test_an_archive_with_damaged_contents_is_refused_and_not_kept(downloaded):
    with zipfile.ZipFile(downloaded, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/file", b"text " * 100)
    encoded = bytearray(downloaded.read_bytes())
    encoded[30 + len("top/file")] |= 0b110  # a block of no type: zlib's error is none of zipfile's
    downloaded.write_bytes(encoded)
    assert "while decompressing" in message(clothing)
    assert list(downloaded.parent.iterdir()) == []


def test_a_disk_that_is_full_costs_no_download(downloaded, monkeypatch):
    def full(self, path=None, members=None, pwd=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    assert "No space left" in message(clothing)
    assert downloaded.exists()


@pytest.mark.parametrize("lost", ["train/hat/b.jpg", "validation", ""])
def test_files_that_the_cache_has_lost_are_missed(lost, downloaded):
    clothing()
    folder = downloaded.with_name(f"{downloaded.name}-unpacked")
    (folder / ".DS_Store").write_text("of a file manager")
    assert len(clothing().train) == 6
    path = folder / TOP / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = message(clothing)
    assert f"{folder} holds " in text and "which has 8; remove it" in text


def test_a_folder_called_clothing_is_not_taken_for_it(cache, checkout, monkeypatch):
    monkeypatch.chdir(checkout.parent)
    checkout.rename("clothing")
    assert CLOTHING.address in message(clothing)
    assert len(load_images(DataConfig(name="./clothing", image_size=16), "train")) == 4


def test_it_cannot_be_streamed(cache):
    assert "cannot be streamed" in message(lambda: load_splits(DataConfig("clothing", image_size=16, streaming=True)))
