"""Images in folders and npz files: read as they were written, in order, or refused in one line."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from image_sources import DataSetImages, FolderImages, NpzImages
from sample_files import write_npz

from tokenizer.data import DataConfig, load_images


def random_images(number, channels=3, height=6, width=5):
    shape = (number, channels, height, width)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def save_pngs(images, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(folder / f"{index:03d}.png")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_gives_the_pixels_that_were_saved_in_order(tmp_path, channels):
    images = random_images(12, channels)
    source = FolderImages(save_pngs(images, tmp_path / "images"))
    assert len(source) == 12 and source.image_size == (6, 5)
    assert torch.equal(source.batch(range(12)), images)
    assert torch.equal(source.batch(range(3, 7)), images[3:7])


def test_an_npz_is_what_numpy_reads_and_the_source_reads_it_back(tmp_path):
    images, labels = random_images(9), torch.arange(9) % 4
    file = tmp_path / "samples.npz"
    write_npz(file, iter(images), labels)
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert np.array_equal(arrays["arr_1"], labels.numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npz"]
    source = NpzImages(file)
    assert torch.equal(source.batch(range(9)), images) and torch.equal(source.labels, labels)
    assert source.image_size == (6, 5)
    assert isinstance(source.images, np.memmap)  # 50,000 images of 256 pixels are 10 GB


def test_grey_samples_are_written_as_rgb(tmp_path):
    images = random_images(3, channels=1)
    write_npz(tmp_path / "grey.npz", iter(images), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(NpzImages(tmp_path / "grey.npz").batch(range(3)), images.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_numpy_is_read_stored_or_compressed(tmp_path, save):
    images = random_images(5)
    save(tmp_path / "a.npz", images.permute(0, 2, 3, 1).numpy())
    source = NpzImages(tmp_path / "a.npz")
    assert torch.equal(source.batch(range(5)), images) and source.labels is None


def test_the_fingerprint_is_of_the_pixels_and_their_order(tmp_path):
    images = random_images(5)
    folder = FolderImages(save_pngs(images, tmp_path / "a"))
    assert folder.fingerprint == FolderImages(save_pngs(images, tmp_path / "b")).fingerprint
    changed = images.clone()
    changed[4, 2, 5, 4] ^= 1
    for index, other in enumerate((changed, images.flip(0), images[:4])):
        assert FolderImages(save_pngs(other, tmp_path / f"c{index}")).fingerprint != folder.fingerprint
        npz = [tmp_path / f"{name}{index}.npz" for name in "de"]
        for file, written in zip(npz, (images, other), strict=True):
            write_npz(file, iter(written), torch.zeros(len(written), dtype=torch.int64))
        assert NpzImages(npz[0]).fingerprint != NpzImages(npz[1]).fingerprint
    assert folder.first(4).fingerprint == FolderImages(save_pngs(images[:4], tmp_path / "f")).fingerprint
    assert len(folder) == 5 and torch.equal(folder.first(2).batch(range(2)), images[:2])


def test_the_first_images_of_a_split_have_a_fingerprint_of_their_own():
    digits = load_images(DataConfig(), "test")
    whole, part = DataSetImages(digits), DataSetImages(digits, 100)
    assert (len(whole), len(part)) == (360, 100)
    assert whole.fingerprint != part.fingerprint
    assert torch.equal(whole[7], part[7]) and whole[7].dtype == torch.uint8


def test_a_folder_that_cannot_be_measured_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="has no PNG files: it is empty"):
        FolderImages(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no PNG files: it holds files of \.jpg"):
        FolderImages(tmp_path)

    folder = save_pngs(random_images(3), tmp_path / "broken")
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"001\.png is broken.*remove it or save it again"):
        FolderImages(folder)
    (folder / "001.png").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"001\.png is broken") as error:
        FolderImages(folder).batch(range(3))
    assert "\n" not in str(error.value)

    folder = save_pngs(random_images(3), tmp_path / "sizes")
    save_pngs(random_images(1, height=7), folder / "more")
    with pytest.raises(
        ValueError, match=r"several kinds of images: 000\.png has .* \(3, 6, 5\), 000\.png has \(3, 7, 5\)"
    ):
        FolderImages(folder)


def test_an_npz_that_cannot_be_measured_is_one_line(tmp_path):
    file = tmp_path / "a.npz"
    file.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as an npz"):
        NpzImages(file)
    np.savez(file, images=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"has no array arr_0, only images\.npy"):
        NpzImages(file)
    for array in (np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)):
        np.savez(file, array)
        with pytest.raises(ValueError, match=r"arr_0 of .* not uint8 \(N, H, W, 3 or 1\)"):
            NpzImages(file)
    np.savez(file, np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="object"):
        NpzImages(file)
    np.savez(file, np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3))
    with pytest.raises(ValueError, match="not one label per image"):
        NpzImages(file)
