"""Draw the paper's figures of trained tokenizers => a PNG each, and a JSON file with its numbers.

python scripts/reproduce.py figure_1 runs/mnist-arcvq runs/mnist-vq --data.name mnist     tokens and codes in a plane
python scripts/reproduce.py figure_2 runs/mnist-arcvq runs/mnist-vq --data.name mnist     the codes' norms and use
python scripts/reproduce.py figure_3 runs/mnist-arcvq runs/mnist-vq --data.name mnist     distances between codes
python scripts/reproduce.py figure_5 runs/mnist-arcvq runs/mnist-vq --data.name mnist     activation maps
python scripts/reproduce.py figure_images runs/mnist-arcvq runs/mnist-vq --data.name mnist   images, reconstructions
python scripts/reproduce.py figures runs/mnist-arcvq runs/mnist-vq --data.name mnist          what can be drawn of them

The images are evenly spaced over the held-out split.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.compute.devices import default_device
from arcvq.compute.precision import full_float32
from arcvq.compute.process import prepare_process
from arcvq.evaluation.networks import check_count, refuse_skipping
from arcvq.runs.results import check_images, load_tokenizer, note_other_data
from arcvq.runs.settings import ARTEFACTS
from arcvq.sampling.reconstructions import PIXELS_AT_ONCE, round_trip
from pipelines.figures.activations import plot_activations
from pipelines.figures.distances import plot_distances
from pipelines.figures.grids import save_class_samples
from pipelines.figures.tokenizers import NotDrawable, TokenizerTensors, plot_norms, plot_planes
from pipelines.metrics import psnr, to_uint8
from priors.latents import tokenizer_fingerprint
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, evaluation_batches
from tokenizer.data.subsets import evenly_spaced_indices
from tokenizer.quantizers.base import tokens_of

FIGURES: dict[str, Callable[[Sequence[TokenizerTensors], Path], dict[str, Any]]] = {
    "figure_1": plot_planes,
    "figure_2": plot_norms,
    "figure_3": plot_distances,
}
ACTIVATIONS = "figure_5"
IMAGES = "figure_images"  # none of the paper's
DEFAULT_IMAGES = 256
BATCH = 64

HELP = HelpPage(
    common=("num_images", "shown", "output", "data.name", "data.image_size", "data.test_split"),
    examples=(
        "arcvq reproduce figure_2 runs/mnist-arcvq runs/mnist-vq --data.name mnist",
        "arcvq reproduce figures runs/mnist-arcvq runs/mnist-vq --data.name mnist",
    ),
    writes="OUTPUT: a PNG of each figure, and a JSON file with its numbers",
    following="arcvq evaluate reconstruction RUN measures the same tokenizers",
)


@dataclass(frozen=True)
class TokenizerOnImages:
    """A tokenizer's tensors on all images, and latents (n, D, h, w) and uint8 reconstructions of the shown ones."""

    tensors: TokenizerTensors
    latents: Tensor
    reconstructions: Tensor


@full_float32()
def main(args: Sequence[str] | None = None) -> None:
    """Run the tokenizers on the images, then draw and write the figures."""
    parser = ScriptParser("Draw the paper's figures of trained tokenizers.", page=HELP)
    parser.add_argument(
        "figure", choices=[*FIGURES, ACTIVATIONS, IMAGES, "figures"], help="figures: those that can be drawn"
    )
    parser.add_argument("folders", type=str, nargs="+", help="run folders or tokenizer folders")
    parser.add_argument(
        "--num_images", type=int | None, default=None, help=f"held-out images; None: {DEFAULT_IMAGES}, or all there are"
    )
    parser.add_argument("--shown", type=int, default=6, help=f"images in {ACTIVATIONS} and {IMAGES}")
    parser.add_argument("--output", type=str, default="runs/figures", help="folder of the pictures")
    parser.add_class_arguments(DataConfig, "data")
    config = parser.parse(args)
    refuse_skipping(config)
    prepare_process()
    names = tokenizer_names(config.folders)
    data = config.data
    images = announced_splits(data).held_out
    there = f"images in the {images.split} split of {images.name}"
    asked = min(DEFAULT_IMAGES, len(images)) if config.num_images is None else config.num_images
    number = check_count(asked, len(images), there)
    indices = evenly_spaced_indices(len(images), number).tolist()
    if not 1 <= config.shown <= number:
        raise ValueError(f"shown is {config.shown}, but num_images is {number}; take 1 to {number}")
    shown = evenly_spaced_indices(number, config.shown).tolist()
    tokenizers = {}
    for name, folder in names.items():
        tokenizers[name] = load_tokenizer(folder).to(default_device())
        try:
            check_images(tokenizers[name], images)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        note_other_data(folder, data)

    chosen = Subset(images, indices)
    originals = to_uint8(chosen[shown]["images"])
    seen = {name: run_tokenizer(name, tokenizer, chosen, shown) for name, tokenizer in tokenizers.items()}
    facts = {
        "data": {"name": images.name, "split": images.split, "fingerprint": images.fingerprint(), "images": indices},
        "tokenizers": {
            name: {"folder": folder, "fingerprint": tokenizer_fingerprint(tokenizers[name])}
            for name, folder in names.items()
        },
        **provenance("reproduce", args),
    }
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    for figure in (*FIGURES, ACTIVATIONS, IMAGES) if config.figure == "figures" else (config.figure,):
        picture = output / f"{figure}.png"
        of_figure = {"figure": figure}
        try:
            if figure == ACTIVATIONS:
                of_figure["shown"] = [indices[place] for place in shown]
                parts = [(name, its.latents, its.reconstructions) for name, its in seen.items()]
                numbers = plot_activations(originals, parts, picture)
            elif figure == IMAGES:
                of_figure["shown"] = [indices[place] for place in shown]
                numbers = save_images(originals, {name: its.reconstructions for name, its in seen.items()}, picture)
            else:
                numbers = FIGURES[figure]([its.tensors for its in seen.values()], picture)
        except NotDrawable as error:
            if config.figure != "figures":
                raise
            print(f"{figure}: left out: {error}")
            continue
        content = of_figure | facts | {"numbers": numbers}
        picture.with_suffix(".json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        print(f"{figure}: {picture}, its numbers: {picture.with_suffix('.json')}")


def save_images(originals: Tensor, reconstructions: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Save a PNG with a row of images and a row of reconstructions for each tokenizer.

    Args:
        originals: uint8 (n, C, H, W).
        reconstructions: of each tokenizer, uint8 (n, C, H, W).
        path: path of the PNG.

    Returns:
        `psnr` of each tokenizer on each image, in dB; None where the two are equal.
    """
    rows = {"original": originals, **reconstructions}
    row_of_image = [row for row, images in enumerate(rows.values()) for _ in images]
    save_class_samples(torch.cat(list(rows.values())), row_of_image, list(rows), path, per_class=len(originals))
    measured = {name: psnr(originals, made).tolist() for name, made in reconstructions.items()}
    return {name: {"psnr": [None if math.isinf(db) else db for db in values]} for name, values in measured.items()}


def tokenizer_names(folders: Sequence[str]) -> dict[str, str]:
    """Name each folder for the pictures: by its run, or by its whole path where two runs have one name.

    Raises:
        ValueError: one folder is named twice.
    """
    if twice := [folder for folder, times in Counter(folders).items() if times > 1]:
        raise ValueError(f"folder {twice[0]!r} is named twice; name it once")
    short = {}
    for folder in folders:
        path = Path(folder).resolve()
        short[folder] = path.parent.name if path.name in ARTEFACTS else path.name
    times = Counter(short.values())
    return {short[folder] if times[short[folder]] == 1 else folder: folder for folder in folders}


@torch.no_grad()
def run_tokenizer(name: str, tokenizer: VQTokenizer, images: Dataset, shown: Sequence[int]) -> TokenizerOnImages:
    """Encode all images, and decode those at the positions `shown`."""
    bottleneck, device = tokenizer.bottleneck, tokenizer.device
    batch_size = max(1, min(BATCH, PIXELS_AT_ONCE // tokenizer.config.image_size**2))
    maps, counts = [], None
    for batch in evaluation_batches(images, batch_size=batch_size, device=device):
        latents = tokenizer.encode(batch["images"]).latents
        maps.append(latents.float().cpu())
        if tokenizer.has_codes:
            of_batch = bottleneck.counts_of(bottleneck.encode(latents)).cpu()
            counts = of_batch if counts is None else counts + of_batch
    latents = torch.cat(maps)
    if not torch.isfinite(latents).all():
        raise ValueError(f"latents of {name} hold NaN or infinity; the model diverged")
    codebook = tokenizer.codebook.detach().cpu() if tokenizer.has_codes else None
    radius = getattr(bottleneck, "radius", None)
    radius = math.inf if radius is None else float(radius)
    made = [
        round_trip(tokenizer, part["images"])[0].cpu()
        for part in evaluation_batches(Subset(images, shown), batch_size=batch_size, device=device)
    ]
    tensors = TokenizerTensors(name, tokens_of(latents), codebook, counts, radius)
    return TokenizerOnImages(tensors, latents[shown], to_uint8(torch.cat(made)))
