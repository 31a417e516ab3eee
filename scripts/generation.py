"""Samples of a pipeline, or images read from files => how close their distribution is to that of real images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from chunks import Chunks, Measure, sharing_weights
from image_sources import DataSetImages, ImageSource, write_npz
from jsonargparse import Namespace
from measuring import Measuring, check_count, default_extractor, environment, make_measuring
from PIL import Image
from provenance import commit
from reference import Reference, data_set_reference, features_of, read_statistics, statistics_reference
from sampling import SamplingConfig, sample_batches
from stage_one import check_images, find_pipeline, load_pipeline
from torch import Tensor, nn

from pipelines.class_labels import ClassConditionalPipeline
from pipelines.distributions import INCEPTION_SCORE_SPLITS
from pipelines.features import NAME as DIGITS
from pipelines.features import class_accuracy
from pipelines.metrics import distribution_metrics, metric_name
from pipelines.pictures import save_class_samples, save_samples
from pipelines.protocols import PROTOCOLS, number_name
from tokenizer.data import DataConfig, load_images

DEFAULT_SAMPLES = 500
SHOWN = 200  # images from which the picture is made
TITLE = "samples"


def evaluate_generation(source: str | ImageSource, config: Namespace, output: Path) -> dict[str, Any]:
    """The protocol and the numbers of a pipeline's folder, or of images in files.

    Frechet distance, precision and recall against the reference and, where the extractor has logits, the Inception
    score; of digits, also the share that is read as the class asked for.
    """
    to_statistics = config.reference not in ("train", "test")
    protocol = PROTOCOLS[config.protocol or ("adm" if to_statistics else "torch-fidelity")]
    if to_statistics != (protocol.reference == "statistics"):
        raise ValueError(
            f"protocol {protocol.name} compares with {protocol.reference}, not with --reference {config.reference}; "
            "adm takes a file of statistics, torch-fidelity takes train or test"
        )
    if config.batch_size < 1 or config.seed < 0:
        raise ValueError(f"batch_size must be above 0 and seed not below, got {config.batch_size} and {config.seed}")
    measuring = make_measuring(config, protocol, default_extractor(config, "inception"))
    if measuring.perceptual is not None:
        raise ValueError("LPIPS compares reconstructions with their originals; samples have none: leave --lpips out")
    extractor = measuring.extractor

    # Everything that can be wrong is found out here: missing weights are no news to have after hours.
    split = "test" if to_statistics else config.reference
    if to_statistics:
        statistics = read_statistics(config.reference, extractor)
        if statistics.images is not None:
            extractor.check_size(*statistics.images.image_size)
    if not to_statistics or isinstance(source, str):
        real = load_images(DataConfig(**config.data.as_dict()), split)
    facts: dict[str, Any] = measuring.describe() | {"k": 3, "inception_score_splits": INCEPTION_SCORE_SPLITS}
    if not to_statistics:
        extractor.check_size(real.image_size, real.image_size)
        if len(real) < INCEPTION_SCORE_SPLITS:
            raise ValueError(
                f"the metrics need {INCEPTION_SCORE_SPLITS} images on each side, the reference has {len(real)}"
            )
        facts |= {"data": real.name, "split": split, "images": len(real), "image_size": real.image_size}
        facts |= {"fingerprint": real.fingerprint()}
    keep = config.save_images is not None
    kept_images = output / ("samples.npz" if config.save_images == "npz" else "images")
    if keep and kept_images.exists():
        raise ValueError(f"{kept_images} is there already; remove it, or name another --output")

    if isinstance(source, str):
        pipeline = load_pipeline(source).to(PartialState().device)
        check_images(pipeline.vqvae, real)
        options = SamplingConfig(**config.sampling.as_dict()).options(pipeline)
        number = check_enough(DEFAULT_SAMPLES if config.num_images is None else config.num_images)
        labels = class_labels(number, len(pipeline.class_names), config.labels, config.seed)
        extractor.check_size(real.image_size, real.image_size)
        facts |= {"seed": config.seed, "labels": config.labels, "classes": len(pipeline.class_names)}
        facts |= {"sampling": options, "pipeline": folder_fingerprint(find_pipeline(source))}
    else:
        number = check_enough(check_count(config.num_images, len(source), f"images in {source.name}"))
        labels = getattr(source, "labels", None)
        extractor.check_size(*source.image_size)
        facts |= {"samples_fingerprint": source.fingerprint}

    if isinstance(source, str):
        settings = facts | environment() | {"commit": commit(), "kept": keep}
        chunks = Chunks(output, TITLE, settings, number, config.batch_size)
        chunks.compute(lambda: _measure(measuring, pipeline, labels, config.seed, options, keep))
    else:
        chunks, _ = features_of(source, extractor, output)
    cache = Path(config.cache_dir)
    if to_statistics:
        reference = statistics_reference(statistics, extractor, cache)
    else:
        reference = data_set_reference(DataSetImages(real), extractor, cache)
    if reference is None:
        return {}
    numbers = _numbers(chunks, measuring, number, labels, reference)
    if isinstance(source, str):
        shown = torch.cat([values["images"] for values in chunks.read() if "images" in values][: SHOWN + 1])[:SHOWN]
        save_class_samples(shown, labels[: len(shown)], pipeline.class_names, output / "generation.png")
        if keep:
            images = (image for values in chunks.read() for image in values["images"])
            _keep_images(kept_images, images, labels)
    else:
        save_samples(source.batch(range(min(len(source), 100))), output / "generation.png")
    chunks.remove()
    counted = {"samples": number, "asked": protocol.asked}
    if labels is not None:
        of_classes = labels[:number].bincount(minlength=facts.get("classes", 0))
        counted["samples_per_class"] = [of_classes.min().item(), of_classes.max().item()]
    return {"protocol": facts | reference.facts | counted, **numbers}


def check_enough(number: int) -> int:
    """The number of samples. ValueError where it is too small for the metrics."""
    if number < INCEPTION_SCORE_SPLITS:
        raise ValueError(f"the metrics need {INCEPTION_SCORE_SPLITS} images or more, got num_images {number}")
    return number


def class_labels(number: int, classes: int, scheme: str, seed: int) -> Tensor:
    """int64 (number,): `balanced`, one class after the other, or `random`, drawn from `seed`."""
    if scheme == "balanced":
        return torch.arange(number) % classes
    return torch.from_numpy(np.random.default_rng(seed).integers(classes, size=number))


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) of all configs and weights in a pipeline's folder."""
    digest = hashlib.sha256()
    for file in sorted([*folder.rglob("*.json"), *folder.rglob("*.safetensors")]):
        with file.open("rb") as content:
            digest.update(
                f"{file.relative_to(folder).as_posix()} ".encode() + hashlib.file_digest(content, "sha256").digest()
            )
    return digest.hexdigest()


def _measure(
    measuring: Measuring,
    pipeline: ClassConditionalPipeline,
    labels: Tensor,
    first_seed: int,
    options: dict[str, Any],
    keep: bool,
) -> Measure:
    """The function that samples and measures the images of a range, with a pipeline of its own thread."""
    modules = [component for component in pipeline.components.values() if isinstance(component, nn.Module)]
    own = sharing_weights(pipeline, *modules)
    extractor = sharing_weights(measuring.extractor.to(PartialState().device), measuring.extractor)

    def measure(chunk: range) -> dict[str, Tensor]:
        seeds = range(first_seed + chunk.start, first_seed + chunk.stop)
        batches = sample_batches(
            own, labels[chunk.start : chunk.stop].tolist(), seeds, len(chunk), show_progress=False, **options
        )
        images = torch.cat(list(batches))
        features, logits = extractor.extract(images)
        values = {"features": features} | ({} if logits is None else {"logits": logits})
        return values | ({"images": images} if keep or chunk.start < SHOWN else {})

    return measure


def _numbers(
    chunks: Chunks, measuring: Measuring, number: int, labels: Tensor | None, reference: Reference
) -> dict[str, float | int]:
    """The named numbers."""
    features, logits = (
        None if column is None else column[:number] for column in (chunks.column("features"), chunks.column("logits"))
    )
    found = distribution_metrics(features, logits, reference.features, reference.moments)
    asked = measuring.protocol.asked
    names = {name: metric_name(name, measuring.extractor) for name in found}
    numbers = {number_name(names[name], measuring.protocol, number, asked): value for name, value in found.items()}
    if labels is not None and measuring.extractor.name.startswith(DIGITS):
        numbers[f"class_accuracy[{measuring.extractor.name}]"] = class_accuracy(logits, labels[:number])
    return numbers | {"samples": number, **{k: v for k, v in reference.facts.items() if k == "reference_images"}}


def _keep_images(place: Path, images: Sequence[Tensor], labels: Tensor) -> None:
    """PNG files named by index and class, or one npz as ADM's evaluator reads it."""
    if place.suffix == ".npz":
        write_npz(place, images, labels)
        return
    unfinished = place.with_name(f".{place.name}.tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()  # (H, W, 3), or (H, W) in grey
        Image.fromarray(pixels).save(unfinished / f"{index:06d}-class-{label:04d}.png")
    unfinished.replace(place)
