"""Write samples to disk: uint8 images, labels => PNG files, an npz for ADM's evaluator, or tar shards.

All are written atomically, and the same images always give the same bytes.
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
    """Write PNG files named by index and class, from images uint8 (C, H, W) and labels (n,)."""
    with atomic_folder(folder) as unfinished:
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            (unfinished / f"{index:08d}-class-{label:04d}.png").write_bytes(png(image))


def write_npz(file: Path, images: Iterable[Tensor], labels: Tensor) -> None:
    """Write an npz for ADM's evaluator: arr_0 uint8 (N, H, W, 3), arr_1 (N,), from images uint8 (C, H, W) and labels.

    Images are written one by one, so that 50,000 of them need no memory.
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
    """Write WebDataset shards `samples-000000.tar` and on, of IMAGES_PER_SHARD samples each.

    A sample has a .png, a .cls (label) and a .json (label, seed). `data.name` with `data.streaming` reads them too.
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
    """Mark `target` as written from these chunks, so that nothing else is ever overwritten.

    Args:
        target: the file or folder that will be written.
        chunks: the folder of the chunks, which holds the mark.

    Raises:
        ValueError: `target` exists, but was not written from these chunks.
    """
    mark = chunks / f"writes-{target.name}"
    if target.exists() and not mark.exists():
        raise ValueError(f"{target} is there, and not by this command; remove it, or name another --output")
    if chunks.is_dir():
        mark.touch()


def png(image: Tensor) -> bytes:
    """Encode a uint8 image (C, H, W) as PNG."""
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(content, "PNG")  # (H, W, 3), or (H, W) in grey
    return content.getvalue()


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """Open an archive's member for writing, with a fixed date, so that the same images give the same bytes."""
    return archive.open(zipfile.ZipInfo(name), "w", force_zip64=True)


def _add_sample(shard: tarfile.TarFile, index: int, image: Tensor, label: int, seed: int) -> None:
    """Append one sample to a shard, as three members that share a name."""
    facts = json.dumps({"label": label, "seed": seed})
    for ending, content in (("cls", str(label).encode()), ("json", facts.encode()), ("png", png(image))):
        member = tarfile.TarInfo(f"{index:08d}.{ending}")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))
