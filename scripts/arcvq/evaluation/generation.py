"""Evaluate samples: how close is their distribution to that of real images?"""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace
from torch import Tensor

from arcvq.cli.announced_data import announced_splits
from arcvq.compute.resumable import ResumableMap
from arcvq.evaluation.image_sources import DataSetImages, ImageSource
from arcvq.evaluation.networks import default_extractor, make_metric_networks
from arcvq.evaluation.reference import Reference, data_set_reference, read_statistics, statistics_reference
from arcvq.evaluation.result import EvaluationResult
from arcvq.evaluation.samples import FileSamples, PipelineSamples
from arcvq.runs.results import check_images
from arcvq.runs.seeds import check_seed
from pipelines.metrics.digits import NAME as DIGITS
from pipelines.metrics.digits import class_accuracy
from pipelines.metrics.distributions import INCEPTION_SCORE_SPLITS, NEIGHBOURS, distribution_metrics
from pipelines.metrics.extractors import Extractor
from pipelines.metrics.images import metric_name
from pipelines.metrics.protocols import PROTOCOLS, Protocol, number_name


def evaluate_generation(source: str | ImageSource, config: Namespace, output: Path) -> EvaluationResult | None:
    """Measure the samples of a pipeline, or images in files.

    Metrics: Frechet distance, precision and recall against the reference; the Inception score, if the extractor has
    logits; the class accuracy of digits.

    Args:
        source: folder of the pipeline, or images in files.
        config: options of `arcvq evaluate`.
        output: folder of the results.

    Returns:
        the result on the main process, None on the others.

    Raises:
        ValueError: options that do not go together, or weights, reference or images that do not fit.
    """
    to_statistics = config.reference not in ("train", "test")
    protocol = PROTOCOLS[config.protocol or ("adm" if to_statistics else "torch-fidelity")]
    if to_statistics != (protocol.reference == "statistics"):
        raise ValueError(
            f"protocol {protocol.name} compares with {protocol.reference}, not with --reference {config.reference}; "
            "adm takes a file of statistics, torch-fidelity takes train or test"
        )
    if config.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {config.batch_size}")
    check_seed(config.seed)
    networks = make_metric_networks(config, protocol, default_extractor(config, "inception"))
    extractor = networks.extractor

    # Check everything now, so that missing weights are no surprise after hours.
    facts: dict[str, Any] = networks.describe() | {"k": NEIGHBOURS, "inception_score_splits": INCEPTION_SCORE_SPLITS}
    if to_statistics:
        statistics = read_statistics(config.reference, extractor)
    else:
        splits = announced_splits(config.data)
        real = splits.train if config.reference == "train" else splits.held_out
        extractor.check_size(real.image_size, real.image_size)
        if len(real) < INCEPTION_SCORE_SPLITS:
            raise ValueError(f"the metrics need {INCEPTION_SCORE_SPLITS} reference images, there are {len(real)}")
        facts |= {"data": real.name, "split": real.split, "images": len(real), "image_size": real.image_size}
        facts |= {"fingerprint": real.fingerprint()}
    samples = (PipelineSamples if isinstance(source, str) else FileSamples)(source, config, output)
    if isinstance(samples, PipelineSamples) and not to_statistics:
        check_images(samples.pipeline.vqvae, real)
    extractor.check_size(*samples.image_size)

    chunks = samples.features(extractor)
    cache = Path(config.cache_dir)
    if to_statistics:
        reference = statistics_reference(statistics, extractor, cache)
    else:
        reference = data_set_reference(DataSetImages(real), extractor, cache)
    if not PartialState().is_main_process:
        return None
    counts: dict[str, Any] = {"samples": samples.number, "asked": protocol.asked}
    if samples.labels is not None:
        per_class = samples.labels.bincount(minlength=samples.facts.get("classes", 0))
        counts["samples_per_class"] = [per_class.min().item(), per_class.max().item()]
    numbers = _numbers(chunks, extractor, protocol, samples.labels, reference)
    if samples.labels is not None and samples.are_digits and extractor.name.startswith(DIGITS):
        numbers[f"class_accuracy[{extractor.name}]"] = class_accuracy(chunks.column("logits"), samples.labels)
    samples.write_images(chunks)
    return EvaluationResult(facts | samples.facts | reference.facts | counts, numbers, chunks)


def _numbers(
    chunks: ResumableMap, extractor: Extractor, protocol: Protocol, labels: Tensor | None, reference: Reference
) -> dict[str, float | int]:
    """Compute the metrics, under names that hold the protocol and the number of images."""
    features, logits = chunks.column("features"), chunks.column("logits")
    number = len(features)
    metrics = distribution_metrics(features, logits, reference.features, reference.moments)
    # adm asks for the same number of samples of each class.
    per_class = None if labels is None else labels.bincount()
    unbalanced = protocol.name == "adm" and per_class is not None and per_class.max() - per_class.min() > 1
    numbers = {}
    for metric, value in metrics.items():
        name = metric_name(metric, extractor)
        numbers[number_name(name, protocol, number, protocol.asked, ["unbalanced"] if unbalanced else [])] = value
    numbers["samples"] = number
    if "reference_images" in reference.facts:
        numbers["reference_images"] = reference.facts["reference_images"]
    return numbers
