"""Evaluate reconstructions of a held-out split, by a tokenizer or from files: how far are they from the originals?"""

from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from jsonargparse import Namespace
from torch import Tensor

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.provenance import commit, environment
from arcvq.compute.chunk_workers import read_ahead
from arcvq.compute.resumable import Measure, ResumableMap, copy_sharing_weights
from arcvq.evaluation.image_sources import DataSetImages, ImageSource, ProtocolImages
from arcvq.evaluation.networks import (
    CHUNK,
    MetricNetworks,
    check_count,
    check_same_images,
    default_extractor,
    make_metric_networks,
)
from arcvq.evaluation.reference import features_of
from arcvq.evaluation.result import EvaluationResult
from arcvq.runs.results import check_images, load_tokenizer
from arcvq.sampling.reconstructions import number_of_codes, round_trip
from pipelines.figures.grids import plot_codebook, save_comparison
from pipelines.metrics import ReconstructionMetrics, distribution_metrics, moments_of, pair_metrics
from pipelines.metrics.codebook import codebook_geometry
from pipelines.metrics.distributions import INCEPTION_SCORE_SPLITS
from pipelines.metrics.images import metric_name
from pipelines.metrics.protocols import PROTOCOLS, number_name
from priors.latents import tokenizer_fingerprint
from tokenizer import VQTokenizer
from tokenizer.data import ImageDataset
from tokenizer.data.dataset import as_floats

SHOWN = 32  # originals in the picture


def evaluate_reconstruction(source: str | ImageSource, config: Namespace, output: Path) -> EvaluationResult | None:
    """Measure a tokenizer's reconstructions, or reconstructions in files in the order of the split.

    Metrics: PSNR, SSIM, L1 and, with --lpips, LPIPS; the codebook's usage, perplexity and geometry; with an extractor
    the Frechet distance to the originals, and the Inception score if the extractor has logits.

    Args:
        source: folder of the tokenizer, or images in files.
        config: options of `arcvq evaluate`.
        output: folder of the results.

    Returns:
        the result on the main process, None on the others.

    Raises:
        ValueError: options that do not go together, or weights or images that do not fit.
    """
    images = announced_splits(config.data).held_out
    number = check_count(config.num_images, len(images), f"images in the {images.split} split of {images.name}")
    networks = make_metric_networks(config, PROTOCOLS[config.protocol or "rfid"], default_extractor(config, None))
    if networks.extractor is not None:
        networks.extractor.check_size(images.image_size, images.image_size)
        if number < INCEPTION_SCORE_SPLITS:
            raise ValueError(f"an extractor's numbers need {INCEPTION_SCORE_SPLITS} images, got num_images {number}")
    tokenizer = None
    if isinstance(source, str):
        tokenizer = load_tokenizer(source).to(PartialState().device)
        check_images(tokenizer, images)
        measured = {"tokenizer": tokenizer_fingerprint(tokenizer)}
    else:
        check_same_images(source, DataSetImages(images, number))
        measured = {"reconstructions": source.fingerprint}

    facts = networks.describe() | {"ssim_window": config.ssim_window}
    facts |= measured | {
        "data": images.name,
        "split": images.split,
        "images": number,
        "image_size": images.image_size,
        "fingerprint": images.fingerprint(),
    }
    chunks = ResumableMap(output, "reconstruction", facts | environment() | {"commit": commit()}, number, CHUNK)
    reader = read_ahead(partial(_read, networks, images, None if tokenizer else source))
    chunks.compute(lambda: _make_worker(networks, tokenizer, config.ssim_window), inputs=reader)
    originals = None
    if networks.extractor is not None:  # cached, as they are the same for every tokenizer
        same_bytes = ProtocolImages(images, number, networks.protocol)
        originals = features_of(same_bytes, networks.extractor, Path(config.cache_dir))
    if not PartialState().is_main_process:
        return None
    numbers, counts, first = _numbers(chunks, originals, networks, tokenizer, len(images))
    save_comparison(first["originals"][:SHOWN], first["reconstructions"][:SHOWN], output / "reconstruction.png")
    if tokenizer is not None and tokenizer.has_codes:
        plot_codebook(tokenizer.codebook, counts, output / "codebook.png")
    return EvaluationResult(facts | {"asked": len(images)}, numbers, chunks)


def _read(
    networks: MetricNetworks, images: ImageDataset, source: ImageSource | None, chunk: range
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Read the images of a range and reconstructions in files: uint8 as stored, as the protocol has them, and these."""
    pixels = DataSetImages(images).batch(chunk)
    return pixels, networks.protocol.to_bytes(as_floats(pixels)), None if source is None else source.batch(chunk)


def _make_worker(networks: MetricNetworks, shared_tokenizer: VQTokenizer | None, ssim_window: str) -> Measure:
    """Make a thread's function that measures the images of a range, with its own copies of the networks."""
    device = PartialState().device
    extractor, perceptual = networks.extractor, networks.perceptual
    extractor = extractor and copy_sharing_weights(extractor, extractor)
    perceptual = perceptual and copy_sharing_weights(perceptual, perceptual)
    tokenizer = shared_tokenizer and copy_sharing_weights(shared_tokenizer, shared_tokenizer)

    @torch.no_grad()
    def measure(chunk: range, read: tuple[Tensor, Tensor, Tensor | None]) -> dict[str, Tensor]:
        pixels, originals, reconstructions = read
        values = {}
        if tokenizer is None:
            decoded = as_floats(reconstructions.to(device))
        else:
            decoded, codes = round_trip(tokenizer, as_floats(pixels.to(device)))
            if codes is not None:
                values["counts"] = tokenizer.bottleneck.counts_of(codes).cpu()
        if not torch.isfinite(decoded).all():
            raise ValueError(
                f"reconstructions of images {chunk.start} to {chunk.stop - 1} hold NaN or infinity; the model diverged"
            )
        pair = [side.to(device) for side in (originals, networks.protocol.to_bytes(decoded))]
        values |= {name: scores.cpu() for name, scores in pair_metrics(*pair, perceptual, ssim_window).items()}
        if extractor is not None:
            values["features"], logits = extractor.extract(pair[1])
            if logits is not None:
                values["logits"] = logits
        if chunk.start == 0:
            values["originals"], values["reconstructions"] = (side.cpu() for side in pair)
        return values

    return measure


def _numbers(
    chunks: ResumableMap,
    originals: ResumableMap | None,
    networks: MetricNetworks,
    tokenizer: VQTokenizer | None,
    asked: int,
) -> tuple[dict[str, float | int], Tensor, dict[str, Tensor]]:
    """Compute the named metrics, the counts of the codes (K,), and return them with the first chunk."""
    others = {"counts", "features", "logits", "originals", "reconstructions"}
    metrics = ReconstructionMetrics(0 if tokenizer is None else number_of_codes(tokenizer))
    first: dict[str, Tensor] = {}
    for values in chunks.read():
        first = first or values
        pairs = {name: values[name] for name in sorted(values, key=_metric_order) if name not in others}
        metrics.add(pairs, values.get("counts"))
    scores = metrics.result()
    number = scores.pop("images")
    code_use = {name: scores.pop(name) for name in ("usage", "perplexity") if name in scores}
    if originals is not None:
        features, logits = chunks.column("features"), chunks.column("logits")
        distribution = distribution_metrics(features, logits, None, moments_of(originals.column("features")))
        scores |= {metric_name(name, networks.extractor): value for name, value in distribution.items()}
    numbers = {number_name(name, networks.protocol, number, asked): value for name, value in scores.items()}
    if code_use:
        radius = getattr(tokenizer.bottleneck, "radius", None)
        numbers |= {name if number >= asked else f"{name}@{number}": value for name, value in code_use.items()}
        numbers |= codebook_geometry(tokenizer.codebook, None if radius is None else radius.item())
    return numbers | {"images": number}, metrics.counts, first


def _metric_order(name: str) -> tuple[bool, bool, bool, str]:
    """Sort pair metrics: psnr, ssim, l1, then the rest."""
    return not name.startswith("psnr"), not name.startswith("ssim"), name != "l1", name
