"""Images in folders and npz files: read as they were written, in order, or refused in one line."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arcvq.evaluation.image_sources import DataSetImages, FolderImages, NpzImages
from arcvq.sampling.writers import write_npz, write_pngs
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


def test_training_and_evaluation_read_the_same_files_as_the_same_pixels(tmp_path):
    generator = np.random.default_rng(0)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    files = {"b.JPG": {"exif": sideways}, "a/c.Png": {}, "a.webp": {"lossless": True}, "x/y/z.tif": {}, "d.bmp": {}}
    for number, (name, options) in enumerate(files.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shape = (6, 6, 3) if number else (6, 6)
        pixels = Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))
        pixels.save(tmp_path / name, Image.registered_extensions()[Path(name).suffix.lower()], **options)
    for hidden in (".thumbnails/0.png", ".ipynb_checkpoints/0-checkpoint.png", "._b.jpg", "notes.txt"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes((tmp_path / "d.bmp").read_bytes())
    source = FolderImages(tmp_path)
    flat = tmp_path / "flat"  # so that no folder is a class
    flat.mkdir()
    for number, file in enumerate(source.files):
        (flat / f"{number}{file.suffix}").write_bytes(file.read_bytes())
    train = load_images(DataConfig(name=str(flat)), "train")
    assert len(source) == len(train) == 5 and train.channels == 3
    for ours, theirs in zip(source, train, strict=True):
        assert torch.equal(ours, (theirs["images"] + 1).mul(127.5).round().byte())
    assert "3 hidden, 1 unreadable name (.txt)" in source.line and "1 are JPEG" in source.line


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_images_that_lie_on_their_side_are_turned(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = random_images(1)[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "0.png", exif=exif)
    source = FolderImages(tmp_path)
    quarters = {1: 0, 3: 2, 6: -1, 8: 1}[turn]
    assert torch.equal(source[0], torch.rot90(pixels, quarters, (1, 2)))
    assert source.image_size == tuple(source[0].shape[1:])


def test_the_output_of_sampling_is_its_images(tmp_path):
    images = random_images(4)
    write_pngs(tmp_path / "images", iter(images), torch.zeros(4, dtype=torch.int64))
    Image.new("RGB", (50, 50)).save(tmp_path / "grid.png")
    with pytest.raises(ValueError, match="several sizes"):
        FolderImages(tmp_path)
    (tmp_path / "samples.json").write_text("{}")
    assert torch.equal(FolderImages(tmp_path).batch(range(4)), images)
    (tmp_path / "images").rename(tmp_path / "shards")
    with pytest.raises(ValueError, match="its samples as shards; sample with --format png"):
        FolderImages(tmp_path)


def test_grey_and_colour_in_one_folder_are_colour(tmp_path):
    save_pngs(random_images(2), tmp_path / "a")
    save_pngs(random_images(1, channels=1), tmp_path / "b")
    source = FolderImages(tmp_path)
    assert source.batch(range(3)).shape == (3, 3, 6, 5)
    assert torch.equal(source[2], random_images(1, channels=1)[0].expand(3, -1, -1))


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
    with pytest.raises(ValueError, match="has no image files: it is empty"):
        FolderImages(tmp_path)
    (tmp_path / "a.heic").write_bytes(b"")
    (tmp_path / ".b.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no image files: 1 hidden, 1 unreadable name \(\.heic\)"):
        FolderImages(tmp_path)

    folder = save_pngs(random_images(3), tmp_path / "broken")
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"001\.png cannot be decoded: .*replace it"):
        FolderImages(folder)
    (folder / "001.png").write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"001\.png cannot be decoded") as error:
        FolderImages(folder).batch(range(3))
    assert "\n" not in str(error.value)

    folder = save_pngs(random_images(3), tmp_path / "sizes")
    save_pngs(random_images(1, height=7), folder / "more")
    with pytest.raises(ValueError, match=r"images of several sizes: 000\.png is 5x6, 000\.png is 5x7"):
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


def save_header(file, header, content=b"", compression=zipfile.ZIP_STORED):
    """An npz whose arr_0 is of any header."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        text = header.encode("latin1") + b"\n"
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + content)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000, 1000, 1000, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 1, 1, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 2, 3)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 2, 3)}",
        "{'descr': 'nothing', 'fortran_order': False, 'shape': (1, 2, 2, 3)}",
        "{'descr': '|u1'",
        "[" * 9000,
        "",
    ],
)
def test_an_npz_with_a_broken_header_is_refused_before_its_array_is_read(tmp_path, monkeypatch, header, compression):
    save_header(tmp_path / "a.npz", header, bytes(12), compression)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("an array was read"))
    with pytest.raises(
        ValueError, match=r"a\.npz cannot be read as an npz: .*; save images with numpy\.savez"
    ) as error:
        NpzImages(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_a_cut_or_changed_npz_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3))
    whole = buffer.getvalue()
    for place in range(0, len(whole), 3):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :]):
            (tmp_path / "a.npz").write_bytes(content)
            try:
                NpzImages(tmp_path / "a.npz")
            except ValueError as error:
                assert "a.npz" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("labels", [np.array([0, -1]), np.array([0, 2**62]), np.array([0, 2**63], np.uint64)])
def test_labels_of_an_npz_that_are_no_classes(tmp_path, labels):
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8), labels)
    with pytest.raises(ValueError, match=r"arr_1 of .*a\.npz has labels .* which are no classes"):
        NpzImages(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2))
    with pytest.raises(ValueError, match="is float64, not integers"):
        NpzImages(tmp_path / "a.npz")


def test_files_that_claim_to_be_png_are_one_line(tmp_path, monkeypatch):
    folder = save_pngs(random_images(3), tmp_path / "large")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29)
    with pytest.raises(ValueError, match=r"image .*000\.png is too large: 5x6, more than 29 pixels"):
        FolderImages(folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 14)
    with pytest.raises(ValueError, match=r"image .*000\.png is too large: "):
        FolderImages(folder)
    monkeypatch.undo()
    frames = [Image.fromarray(np.full((6, 5), value, np.uint8)) for value in (1, 200)]
    frames[0].save(folder / "001.png", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"001\.png has 2 frames"):
        FolderImages(folder)
    (folder / "001.png").unlink()
    os.mkfifo(folder / "001.png")
    with pytest.raises(ValueError, match=r"001\.png cannot be read: it is no file"):
        FolderImages(folder)
