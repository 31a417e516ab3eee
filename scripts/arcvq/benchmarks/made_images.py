"""Images for a measurement, made from a seed, as JPEG files, parquet and tar shards."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np

from arcvq.planning.textured_image import as_jpeg, textured_image

CLASSES = 4
SHARDS = 2
ROW_GROUP = 64


def write_forms(folder: Path, number: int, seed: int) -> dict[str, Path]:
    """Write the images as `files` (a folder for each class), `parquet` and `tar` (in shards); return the folders."""
    random = np.random.default_rng(seed)
    encoded = [as_jpeg(textured_image(random)) for _ in range(number)]
    labels = [index % CLASSES for index in range(number)]
    folders = {form: folder / form for form in ("files", "parquet", "tar")}
    for index, (content, label) in enumerate(zip(encoded, labels, strict=True)):
        file = folders["files"] / "train" / f"class_{label}" / f"{index:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    names = [f"class_{label}" for label in range(CLASSES)]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    for shard in range(SHARDS):
        rows = range(shard, number, SHARDS)
        columns = {
            "image": [{"bytes": encoded[row], "path": None} for row in rows],
            "label": [labels[row] for row in rows],
        }
        for form in ("parquet", "tar"):
            folders[form].mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(str(folders["parquet"] / f"train-{shard}.parquet"), batch_size=ROW_GROUP)
        with tarfile.open(folders["tar"] / f"train-{shard}.tar", "w") as archive:
            for row in rows:
                for ending, content in (("cls", str(labels[row]).encode()), ("jpg", encoded[row])):
                    member = tarfile.TarInfo(f"{row:06d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folders
