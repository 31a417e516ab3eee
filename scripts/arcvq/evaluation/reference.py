"""The reference that samples are compared with: features of a split, or a file of statistics."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from arcvq.cli.provenance import commit, environment
from arcvq.compute.atomic_files import atomic_file
from arcvq.compute.chunk_workers import read_ahead
from arcvq.compute.resumable import Measure, ResumableMap, copy_sharing_weights
from arcvq.evaluation.image_sources import ImageSource, NpzImages
from arcvq.evaluation.networks import CHUNK, extractor_facts
from arcvq.evaluation.npz import array_headers, no_npz
from pipelines.metrics import moments_of
from pipelines.metrics.distributions import NEIGHBOURS, FeatureMoments, covariance_problem
from pipelines.metrics.extractors import Extractor

STORED = ("name", "sha256", "input")  # facts on the extractor in a file of statistics
_WRITE_ANEW = "write it anew with: arcvq evaluate statistics"
REFERENCE_IMAGES = 10_000  # images in a file of statistics, for precision and recall; the number that ADM takes


@dataclass(frozen=True)
class Reference:
    """A reference.

    Attributes:
        moments: mean and covariance of its features.
        features: (N, D); None if the reference has no images.
        facts: its description in a result.
    """

    moments: FeatureMoments
    features: Tensor | None
    facts: dict[str, Any]


def features_of(images: ImageSource, extractor: Extractor, folder: Path) -> ResumableMap:
    """Compute features and logits of images, in chunks below `folder` that later evaluations reuse."""
    settings = {"images": images.fingerprint, "commit": commit(), **extractor_facts(extractor)}
    chunks = ResumableMap(folder, "features", settings | environment(), len(images), CHUNK)

    def make_worker() -> Measure:
        own = copy_sharing_weights(extractor, extractor)

        def measure(chunk: range, batch: Tensor) -> dict[str, Tensor]:
            features, logits = own.extract(batch)
            return {"features": features} | ({} if logits is None else {"logits": logits})

        return measure

    chunks.compute(make_worker, inputs=read_ahead(images.batch))
    return chunks


def data_set_reference(images: ImageSource, extractor: Extractor, cache_dir: Path) -> Reference | None:
    """Compute the reference from images, and cache features in `cache_dir`; return None except on the main process."""
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
    """Read and check a file of statistics.

    Raises:
        ValueError: the file does not exist, holds no valid statistics, or is of another extractor.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no file of statistics {path!r}; write one with: arcvq evaluate statistics")
    names, arrays = _read_arrays(path)
    facts = extractor_facts(extractor)
    for name in STORED:
        if name in arrays and str(arrays[name]) != str(facts[name]):
            raise ValueError(
                f"{path} holds statistics of another extractor: its {name} is {str(arrays[name])[:80]!r}, that of "
                f"{extractor.name} is {str(facts[name])[:80]!r}; write them anew with: arcvq evaluate statistics"
            )
    if "sha256" not in arrays and not extractor.is_fid:
        raise ValueError(
            f"{path} does not name its extractor, as files of Inception's do; write one of {extractor.name} with: "
            "arcvq evaluate statistics"
        )
    moments = _moments(path, arrays)
    images = NpzImages(Path(path)) if "arr_0.npy" in names else None
    if images is not None and len(images) <= NEIGHBOURS:
        raise ValueError(f"{path} holds {len(images)} images, too few for {NEIGHBOURS} neighbours; take more or none")
    # The features of one blank image tell their number of dimensions.
    height, width = (extractor.smallest,) * 2 if images is None else images.image_size
    extractor.check_size(height, width)
    blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    expected, dims = extractor.extract(blank)[0].shape[1], len(moments.mean)
    if dims != expected:
        raise ValueError(f"{path} is of {dims} features, and {extractor.name} has {expected}; {_WRITE_ANEW}")
    return StatisticsFile(moments, images, {"reference": path, "reference_sha256": _sha256(path)})


def _read_arrays(path: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Read the names of all arrays in a file of statistics, and all arrays except the images.

    Raises:
        ValueError: the arrays are not numbers, or their shapes do not fit.
    """
    names, headers = array_headers(Path(path), ("mu", "sigma", "count", *STORED), _WRITE_ANEW)
    if lacking := [name for name in ("mu", "sigma") if name not in headers]:
        present = ", ".join(name.removesuffix(".npy") for name in names)
        raise ValueError(f"{path} holds no {' and no '.join(lacking)}, only {present}; {_WRITE_ANEW}")
    shapes = {name: headers[name].shape for name in ("mu", "sigma")}
    dims = math.prod(shapes["mu"])
    if shapes != {"mu": (dims,), "sigma": (dims, dims)} or dims == 0:
        raise ValueError(
            f"{path} holds mu {shapes['mu']} and sigma {shapes['sigma']}, and not (D,) and (D, D); {_WRITE_ANEW}"
        )
    for name in sorted(headers.keys() - set(STORED)):
        if headers[name].dtype.kind not in "fiu":
            raise ValueError(f"{name} of {path} is {headers[name].dtype}, and not of real numbers; {_WRITE_ANEW}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return names, {name: arrays[name] for name in headers}
    except Exception as error:  # zipfile, zlib and numpy raise errors of many classes
        raise no_npz(Path(path), error, _WRITE_ANEW) from error


def _moments(path: str, arrays: dict[str, np.ndarray]) -> FeatureMoments:
    """Read the mean and covariance from the arrays. ValueError unless two images or more can have them."""
    mean, covariance = (_as_float64(arrays[name]) for name in ("mu", "sigma"))
    for name, values in {"mu": mean, "sigma": covariance}.items():
        if not values.isfinite().all():
            raise ValueError(f"{name} of {path} holds NaN or infinity; {_WRITE_ANEW}")
    if problem := covariance_problem(covariance):
        raise ValueError(f"sigma of {path} {problem}: it is no covariance; {_WRITE_ANEW}")
    count = arrays.get("count", np.array(2))  # any count gives the covariance of the file
    if count.size != 1 or not count >= 2 or count != np.floor(count) or not np.isfinite(count):
        raise ValueError(f"{path} is of {count!s:.40} images, and statistics are of 2 or more; {_WRITE_ANEW}")
    return FeatureMoments(int(count.item()), mean, covariance * (int(count.item()) - 1))


def statistics_reference(file: StatisticsFile, extractor: Extractor, cache_dir: Path) -> Reference | None:
    """Compute the reference from a file of statistics; return None except on the main process."""
    if file.images is None:
        return Reference(file.moments, None, file.facts) if PartialState().is_main_process else None
    images = data_set_reference(file.images, extractor, cache_dir)
    if images is None:
        return None
    return Reference(file.moments, images.features, file.facts | {"reference_images": len(file.images)})


def write_statistics(images: ImageSource, extractor: Extractor, cache_dir: Path, file: Path) -> None:
    """Write the moments of all images, and up to 10,000 of the images, in the form that `read_statistics` reads."""
    reference = data_set_reference(images, extractor, cache_dir)
    if reference is None:
        return
    kept = np.linspace(0, len(images), min(len(images), REFERENCE_IMAGES), endpoint=False).astype(int)
    arrays = torch.stack([images[index].expand(3, -1, -1).permute(1, 2, 0) for index in kept]).numpy()
    with atomic_file(file) as unfinished, unfinished.open("wb") as opened:  # given a path, savez would append .npz
        np.savez(
            opened,
            mu=reference.moments.mean.numpy(),
            sigma=reference.moments.covariance.numpy(),
            count=reference.moments.count,
            arr_0=arrays,
            **{name: extractor_facts(extractor)[name] for name in STORED},
            fingerprint=images.fingerprint,
        )


def _as_float64(values: np.ndarray) -> Tensor:
    with np.errstate(over="ignore"):  # a longer type may overflow to infinity, which raises an error later
        return torch.from_numpy(values.astype(np.float64))


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
