"""Reconstructions of a held-out split, by a tokenizer or read from files => what they lack of the originals."""

from pathlib import Path

import torch
from accelerate import PartialState
from jsonargparse import Namespace
from torch import Tensor

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.provenance import commit, environment
from arcvq.compute.resumable import Measure, ResumableMap, copy_sharing_weights
from arcvq.evaluation.image_sources import DataSetImages, ImageSource, ProtocolImages
from arcvq.evaluation.networks import (
    CHUNK,
    Measured,
    Measuring,
    check_count,
    check_same_images,
    default_extractor,
    make_measuring,
)
from arcvq.evaluation.reference import features_of
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
from tokenizer.functional.usage import code_counts

SHOWN = 32  # originals in the picture


def evaluate_reconstruction(source: str | ImageSource, config: Namespace, output: Path) -> Measured | None:
    """A tokenizer's folder, or reconstructions in files in the split's order, measured; None but on the main process.

    psnr, ssim, l1 and, with --lpips, LPIPS; the codebook's usage, perplexity and geometry; with an extractor the
    Frechet distance to the originals and, where it has logits, the Inception score.
    """
    images = announced_splits(config.data).held_out
    number = check_count(config.num_images, len(images), f"images in the test split of {images.name}")
    measuring = make_measuring(config, PROTOCOLS[config.protocol or "rfid"], default_extractor(config, None))
    if measuring.extractor is not None:
        measuring.extractor.check_size(images.image_size, images.image_size)
        if number < INCEPTION_SCORE_SPLITS:
            raise ValueError(f"an extractor's numbers need {INCEPTION_SCORE_SPLITS} images, got num_images {number}")
    tokenizer = None
    if isinstance(source, str):
        tokenizer = load_tokenizer(source).to(PartialState().device)
        check_images(tokenizer, images)
        described = {"tokenizer": tokenizer_fingerprint(tokenizer)}
    else:
        check_same_images(source, DataSetImages(images, number))
        described = {"reconstructions": source.fingerprint}

    facts = measuring.describe() | {"ssim_window": config.ssim_window}
    facts |= described | {
        "data": images.name,
        "split": images.split,
        "images": number,
        "image_size": images.image_size,
        "fingerprint": images.fingerprint(),
    }
    chunks = ResumableMap(output, "reconstruction", facts | environment() | {"commit": commit()}, number, CHUNK)
    chunks.compute(lambda: _measure(measuring, images, tokenizer or source, config.ssim_window))
    originals = None
    if measuring.extractor is not None:  # the same for every tokenizer of these images
        same_bytes = ProtocolImages(images, number, measuring.protocol)
        originals = features_of(same_bytes, measuring.extractor, Path(config.cache_dir))
    if not PartialState().is_main_process:
        return None
    numbers, counts, first = _numbers(chunks, originals, measuring, tokenizer, len(images))
    save_comparison(first["originals"][:SHOWN], first["reconstructions"][:SHOWN], output / "reconstruction.png")
    if tokenizer is not None and tokenizer.has_codes:
        plot_codebook(tokenizer.codebook.detach().cpu(), counts, output / "codebook.png")
    return Measured(facts | {"asked": len(images)}, numbers, chunks)


def _measure(
    measuring: Measuring, images: ImageDataset, reconstructions: VQTokenizer | ImageSource, ssim_window: str
) -> Measure:
    """The function that measures the images of a range, with networks of its own thread."""
    device = PartialState().device
    extractor, perceptual = measuring.extractor, measuring.perceptual
    extractor = extractor and copy_sharing_weights(extractor.to(device), extractor)
    perceptual = perceptual and copy_sharing_weights(perceptual.to(device), perceptual)
    tokenizer = None
    if isinstance(reconstructions, VQTokenizer):
        tokenizer = copy_sharing_weights(reconstructions, reconstructions)

    @torch.no_grad()
    def measure(chunk: range) -> dict[str, Tensor]:
        floats = images[list(chunk)]["images"]
        values = {}
        if tokenizer is None:
            made = reconstructions.batch(chunk).float() / 127.5 - 1
        else:
            made, codes = round_trip(tokenizer, floats.to(device))
            if codes is not None:
                values["counts"] = code_counts(codes, tokenizer.config.codebook_size).cpu()
        if not torch.isfinite(made).all():
            raise ValueError(
                f"reconstructions of images {chunk.start} to {chunk.stop - 1} hold NaN or infinity; the model diverged"
            )
        pair = [measuring.protocol.to_bytes(these.cpu()).to(device) for these in (floats, made)]
        values |= {name: of_images.cpu() for name, of_images in pair_metrics(*pair, perceptual, ssim_window).items()}
        if extractor is not None:
            values["features"], logits = extractor.extract(pair[1])
            if logits is not None:
                values["logits"] = logits
        if chunk.start == 0:
            values["originals"], values["reconstructions"] = (these.cpu() for these in pair)
        return values

    return measure


def _numbers(
    chunks: ResumableMap,
    originals: ResumableMap | None,
    measuring: Measuring,
    tokenizer: VQTokenizer | None,
    asked: int,
) -> tuple[dict[str, float | int], Tensor, dict[str, Tensor]]:
    """The named numbers, how often each code occurred, and the first chunk."""
    others = {"counts", "features", "logits", "originals", "reconstructions"}
    metrics = ReconstructionMetrics(0 if tokenizer is None else number_of_codes(tokenizer))
    first: dict[str, Tensor] = {}
    for values in chunks.read():
        first = first or values
        pairs = {name: values[name] for name in sorted(values, key=_place) if name not in others}
        metrics.add(pairs, values.get("counts"))
    found = metrics.result()
    number = found.pop("images")
    of_codes = {name: found.pop(name) for name in ("usage", "perplexity") if name in found}
    if originals is not None:
        features, logits = chunks.column("features"), chunks.column("logits")
        compared = distribution_metrics(features, logits, None, moments_of(originals.column("features")))
        found |= {metric_name(name, measuring.extractor): value for name, value in compared.items()}
    numbers = {number_name(name, measuring.protocol, number, asked): value for name, value in found.items()}
    if of_codes:
        radius = getattr(tokenizer.bottleneck, "radius", None)
        numbers |= {name if number >= asked else f"{name}@{number}": value for name, value in of_codes.items()}
        numbers |= codebook_geometry(tokenizer.codebook, None if radius is None else radius.item())
    return numbers | {"images": number}, metrics.counts, first


def _place(name: str) -> tuple[bool, bool, bool, str]:
    """Sorts pair metrics: psnr, ssim, l1, then the rest."""
    return not name.startswith("psnr"), not name.startswith("ssim"), name != "l1", name
