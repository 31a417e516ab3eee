"""Samples on disk: uint8 images, labels => PNG files, an npz as ADM's evaluator reads it, or tar shards.

Each is there under its name only when it is complete, and the same bytes whenever it is written.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from arcvq.compute.atomic_files import atomic_file, atomic_folder

IMAGES_PER_SHARD = 5000


def write_pngs(folder: Path, images: Iterable[Tensor], labels: Tensor) -> None:
    """PNG files named by index and class, from images uint8 (C, H, W) and labels (n,)."""
    with atomic_folder(folder) as unfinished:
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            (unfinished / f"{index:08d}-class-{label:04d}.png").write_bytes(png(image))


def write_npz(file: Path, images: Iterable[Tensor], labels: Tensor) -> None:
    """Images uint8 (C, H, W) and their labels as ADM's evaluator reads them: arr_0 uint8 (N, H, W, 3), arr_1 (N,).

    One image at a time: 50,000 of them never sit in memory.
    """
    with atomic_file(file) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        with _member(archive, "arr_0.npy") as member:
            for index, image in enumerate(images):
                pixels = np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
                if index == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *pixels.shape)}
                    npy.write_array_header_1_0(member, header)
                member.write(pixels.tobytes())
        with _member(archive, "arr_1.npy") as member:
            npy.write_array(member, labels.numpy(), allow_pickle=False)


def write_webdataset(folder: Path, images: Iterable[Tensor], labels: Tensor, seeds: Sequence[int]) -> None:
    """Tar shards `samples-000000.tar` and on, of IMAGES_PER_SHARD samples: .png, .cls (label) and .json (label, seed).

    Any reader of WebDataset takes them, and so does `data.name` with `data.streaming`.
    """
    samples = zip(images, labels.tolist(), seeds, strict=True)
    with atomic_folder(folder) as unfinished:
        for start in range(0, len(labels), IMAGES_PER_SHARD):
            with tarfile.open(unfinished / f"samples-{start // IMAGES_PER_SHARD:06d}.tar", "w") as shard:
                for index in range(start, min(start + IMAGES_PER_SHARD, len(labels))):
                    _add_sample(shard, index, *next(samples))


FORMATS: dict[str, tuple[str, Callable[[Path, Iterator[Tensor], Tensor, Sequence[int]], None]]] = {
    "png": ("images", lambda path, images, labels, seeds: write_pngs(path, images, labels)),
    "npz": ("samples.npz", lambda path, images, labels, seeds: write_npz(path, images, labels)),
    "webdataset": ("shards", write_webdataset),
}


def claim(target: Path, chunks: Path) -> None:
    """Notes in the folder of the chunks that `target` is written from them, so that only such a one is written over.

    Raises:
        ValueError: `target` is there, and not from these chunks.
    """
    mark = chunks / f"writes-{target.name}"
    if target.exists() and not mark.exists():
        raise ValueError(f"{target} is there, and not by this command; remove it, or name another --output")
    if chunks.is_dir():
        mark.touch()


def png(image: Tensor) -> bytes:
    """A uint8 image (C, H, W) as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(content, "PNG")  # (H, W, 3), or (H, W) in grey
    return content.getvalue()


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Opened for writing, under one date: an archive of the same images is the same file."""
    return archive.open(zipfile.ZipInfo(name), "w", force_zip64=True)


def _add_sample(shard: tarfile.TarFile, index: int, image: Tensor, label: int, seed: int) -> None:
    """Append one sample to a shard, as three members that share a name."""
    facts = json.dumps({"label": label, "seed": seed})
    for ending, content in (("cls", str(label).encode()), ("json", facts.encode()), ("png", png(image))):
        member = tarfile.TarInfo(f"{index:08d}.{ending}")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))
