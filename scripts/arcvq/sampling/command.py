"""Sample images from a trained pipeline => PNG files, an npz or tar shards, and a grid.

python scripts/sample.py
python scripts/sample.py runs/pixelcnn --class_labels 3 7 --per_class 5 --sampling.temperature 0.9
python scripts/sample.py --num_images 50000 --format npz --sampling.scheduler unipc --sampling.num_inference_steps 30
accelerate launch --multi_gpu --num_processes 8 scripts/sample.py --num_images 50000 --speed.dtype bfloat16

Image i has label i of the list and the seed `seed` + i, so at one batch size the files are the same bytes for any
number of processes. After an interruption, the same command continues where it stopped.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import commit, environment, provenance
from arcvq.compute.atomic_files import atomic_file
from arcvq.compute.precision import full_float32
from arcvq.compute.process import prepare_process
from arcvq.compute.resumable import ResumableMap
from arcvq.runs.seeds import check_seed
from arcvq.sampling.labels import PER_CLASS, wanted_labels
from arcvq.sampling.options import SamplingConfig, SpeedConfig
from arcvq.sampling.sampler import Sampler, images_of
from arcvq.sampling.writers import FORMATS, claim
from pipelines.figures.grids import save_class_samples

SHOWN = 200  # images in the grid

HELP = HelpPage(
    common=(
        *("class_labels", "per_class", "num_images", "labels", "seed", "batch_size", "format", "output"),
        *("sampling.guidance_scale", "sampling.num_inference_steps", "sampling.scheduler"),
        *("sampling.temperature", "sampling.top_k", "speed.dtype", "speed.compile"),
    ),
    examples=(
        "arcvq sample runs/ldm",
        "arcvq sample runs/pixelcnn --class_labels 3 7 --per_class 5 --sampling.temperature 0.9",
        "accelerate launch -m arcvq sample runs/ldm --num_images 50000 --format npz",
    ),
    writes="OUTPUT: images as PNG files, npz or tar shards; grid.png, samples.json",
    following="arcvq evaluate generation runs/ldm, or of the images: arcvq evaluate generation FOLDER",
)


def make_parser() -> ScriptParser:
    """Make the parser of `arcvq sample`."""
    parser = ScriptParser("Sample images from a trained pipeline.", page=HELP)
    parser.add_argument("folder", type=str, nargs="?", default="runs/ldm", help="pipeline folder, or its run folder")
    parser.add_argument("--class_labels", type=str, nargs="+", default=None, help="ids or names; all where left out")
    parser.add_argument(
        "--per_class", type=int, default=PER_CLASS, help="images of each class, where num_images is left out"
    )
    parser.add_argument("--num_images", type=int | None, default=None, help="images of all classes together")
    parser.add_argument(
        "--labels", type=str, default="balanced", help="balanced, random, or a text file: an id or name per line"
    )
    parser.add_argument("--seed", type=int, default=0, help="the images have the seeds from this one on")
    parser.add_argument("--batch_size", type=int, default=64, help="images sampled at once")
    parser.add_argument("--format", choices=list(FORMATS), default="png", help="of the files that are written")
    parser.add_argument("--output", type=str, default=None, help="folder for the images; None: FOLDER/samples-SEED")
    parser.add_class_arguments(SamplingConfig, "sampling")
    parser.add_class_arguments(SpeedConfig, "speed")
    return parser


@full_float32()
def main(args: Sequence[str] | None = None) -> None:
    """Sample the images that are not on disk yet, then write all of them."""
    config = make_parser().parse(args)
    for name in ("per_class", "batch_size", "num_images"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    check_seed(config.seed)
    state = prepare_process()
    sampler = Sampler(config.folder, config.sampling, config.speed)
    labels = wanted_labels(sampler.pipeline, config)
    seeds = range(config.seed, config.seed + len(labels))
    output = Path(config.output or f"{config.folder}/samples-{config.seed}")
    name, write = FORMATS[config.format]
    settings = (
        sampler.facts
        | environment()
        | {
            "commit": commit(),
            "images": len(labels),
            "labels": hashlib.sha256(labels.numpy().tobytes()).hexdigest(),
            "seed": config.seed,
            "batch_size": config.batch_size,
        }
    )
    chunks = ResumableMap(output, "sampling", settings, len(labels), config.batch_size)
    if is_complete(output, name, settings | {"format": config.format}):
        if state.is_main_process:
            chunks.remove()
            print(f"{len(labels)} images are there already: {output / name}")
        return
    if state.is_main_process:
        claim(output / name, chunks.folder)
        if others := [str(other) for other in output.glob("sampling-*") if other != chunks.folder]:
            print(f"note: {', '.join(others)} hold unfinished samples of other settings, code included")
    chunks.compute(lambda: lambda chunk: {"images": sampler.sample(labels, config.seed, chunk)})
    if not state.is_main_process:
        return
    shown = first_of_each_class(labels)
    grid = select_images(images_of(chunks), shown)
    save_class_samples(grid, labels[shown], sampler.pipeline.class_names, output / "grid.png", per_class=SHOWN)
    claim(output / name, chunks.folder)
    write(output / name, tqdm(images_of(chunks), total=len(labels), desc="writing", unit="image"), labels, seeds)
    written = {"settings": settings | {"format": config.format}, "provenance": provenance("sample", args)}
    with atomic_file(output / "samples.json") as unfinished:
        unfinished.write_text(json.dumps(written, indent=2) + "\n")
    chunks.remove()  # only now are the images on disk
    print(f"{len(labels)} images: {output / name}, and {output / 'grid.png'}")


def first_of_each_class(labels: Tensor) -> list[int]:
    """Select the indices of the first images of each class: at most SHOWN together, but one of each class at least."""
    per_class = max(1, SHOWN // len(labels.unique()))
    seen: dict[int, int] = {}
    shown = []
    for index, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= per_class:
            shown.append(index)
    return shown


def select_images(images: Iterator[Tensor], indices: Sequence[int]) -> Tensor:
    """Stack the images at `indices`, which rise, to (n, C, H, W); nothing after the last index is read."""
    wanted = set(indices)
    return torch.stack([image for index, image in enumerate(islice(images, max(indices) + 1)) if index in wanted])


def is_complete(output: Path, name: str, settings: dict[str, Any]) -> bool:
    """Tell whether the folder already holds these samples, in the file or folder `name`.

    Raises:
        ValueError: it holds other samples.
    """
    file = output / "samples.json"
    if not file.is_file():
        return False
    try:
        stored = json.loads(file.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what this script writes; remove it, or name another --output") from error
    wanted = json.loads(json.dumps(settings))
    if differing := sorted(key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key)):
        raise ValueError(
            f"{output} holds other samples: they differ in {', '.join(differing)}; remove it, or name another --output"
        )
    return (output / name).exists()
