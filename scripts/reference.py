"""Real images => what samples are compared with: features of a data set's split, or a file of statistics."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from chunks import Chunks, Measure, sharing_weights
from image_sources import ImageSource, NpzImages
from measuring import CHUNK, environment, extractor_facts
from provenance import commit
from torch import Tensor

from pipelines.distributions import NEIGHBOURS, FeatureMoments
from pipelines.extractors import Extractor
from pipelines.metrics import moments_of

STORED = ("name", "sha256", "input")  # of the extractor, in a file of statistics
REFERENCE_IMAGES = 10_000  # of a file of statistics: those that precision and recall look at, as ADM takes them


@dataclass(frozen=True)
class Reference:
    """Moments of the reference; its features where there are images of it; and what a result says of it."""

    moments: FeatureMoments
    features: Tensor | None
    facts: dict[str, Any]


def features_of(images: ImageSource, extractor: Extractor, folder: Path) -> Chunks:
    """Features and logits of images, in chunks below `folder`, which are kept under all that they depend on."""
    settings = {"images": images.fingerprint, "commit": commit(), **extractor_facts(extractor)}
    chunks = Chunks(folder, "features", settings | environment(), len(images), CHUNK)

    def make_measure() -> Measure:
        own = sharing_weights(extractor.to(PartialState().device), extractor)

        def measure(chunk: range) -> dict[str, Tensor]:
            features, logits = own.extract(images.batch(chunk))
            return {"features": features} | ({} if logits is None else {"logits": logits})

        return measure

    chunks.compute(make_measure)
    return chunks


def data_set_reference(images: ImageSource, extractor: Extractor, cache_dir: Path) -> Reference | None:
    """The images' features, kept in `cache_dir` under their contents; None on all but the main process."""
    chunks = features_of(images, extractor, cache_dir)
    if not PartialState().is_main_process:
        return None
    features = chunks.column("features")
    return Reference(moments_of(features), features, {"reference": images.name, "reference_images": len(images)})


@dataclass(frozen=True)
class StatisticsFile:
    """An npz with `mu`, `sigma` and perhaps reference images, `arr_0`, as ADM's evaluator reads it."""

    moments: FeatureMoments
    images: NpzImages | None
    facts: dict[str, Any]


def read_statistics(path: str, extractor: Extractor) -> StatisticsFile:
    """A file of statistics, before any image is made.

    Raises:
        ValueError: no such file, not such statistics, or those of another extractor.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file of statistics {path!r}; write one with: evaluate.py statistics")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = set(arrays.files)
            found = {name: arrays[name] for name in ("mu", "sigma", "count", *STORED) if name in names}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an npz: {error}") from error
    dims = found["mu"].shape[0] if "mu" in found and found["mu"].ndim == 1 else 0
    if dims == 0 or "sigma" not in found or found["sigma"].shape != (dims, dims):
        raise ValueError(f"{path} holds no mu (D,) and sigma (D, D), only {', '.join(sorted(names))}")
    facts = extractor_facts(extractor)
    for name in STORED:
        if name in found and str(found[name]) != str(facts[name]):
            raise ValueError(
                f"{path} holds statistics of another extractor: its {name} is {str(found[name])[:80]!r}, that of "
                f"{extractor.name} is {str(facts[name])[:80]!r}; write them anew with: evaluate.py statistics"
            )
    if "sha256" not in found and not extractor.is_fid:
        raise ValueError(
            f"{path} does not name its extractor, as files of Inception's do; write one of {extractor.name} with: "
            "evaluate.py statistics"
        )
    images = NpzImages(Path(path)) if "arr_0" in names else None
    if images is not None and len(images) <= NEIGHBOURS:
        raise ValueError(f"{path} holds {len(images)} images, too few for {NEIGHBOURS} neighbours; take more or none")
    # One blank image tells the width.
    height, width = (extractor.smallest,) * 2 if images is None else images.image_size
    extractor.check_size(height, width)
    blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    expected = extractor.extract(blank)[0].shape[1]
    if dims != expected or not all(np.isfinite(found[name]).all() for name in ("mu", "sigma")):
        raise ValueError(
            f"mu and sigma of {path} are not {expected} finite numbers and their covariance; write them anew"
        )
    moments = FeatureMoments()
    moments.count = int(found.get("count", 2))  # the covariance is what the file says, whatever the count
    moments.mean = torch.from_numpy(found["mu"]).double()
    moments.scatter = torch.from_numpy(found["sigma"]).double() * (moments.count - 1)
    return StatisticsFile(moments, images, {"reference": path, "reference_sha256": _sha256(path)})


def statistics_reference(file: StatisticsFile, extractor: Extractor, cache_dir: Path) -> Reference | None:
    """The file's moments, and the features of its images, on the main process."""
    if file.images is None:
        return Reference(file.moments, None, file.facts) if PartialState().is_main_process else None
    found = data_set_reference(file.images, extractor, cache_dir)
    if found is None:
        return None
    return Reference(file.moments, found.features, file.facts | {"reference_images": len(file.images)})


def write_statistics(images: ImageSource, extractor: Extractor, cache_dir: Path, file: Path) -> None:
    """Moments of all images, and up to 10,000 of them, as `read_statistics` reads them."""
    found = data_set_reference(images, extractor, cache_dir)
    if found is None:
        return
    kept = np.linspace(0, len(images), min(len(images), REFERENCE_IMAGES), endpoint=False).astype(int)
    arrays = torch.stack([images[index].expand(3, -1, -1).permute(1, 2, 0) for index in kept]).numpy()
    unfinished = file.with_name(f".{file.name}.tmp.npz")
    np.savez(
        unfinished,
        mu=found.moments.mean.numpy(),
        sigma=found.moments.covariance.numpy(),
        count=found.moments.count,
        arr_0=arrays,
        **{name: extractor_facts(extractor)[name] for name in STORED},
        fingerprint=images.fingerprint,
    )
    unfinished.replace(file)


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
