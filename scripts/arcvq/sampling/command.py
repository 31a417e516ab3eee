"""Samples images from a trained pipeline => PNG files, an npz or tar shards, and a grid.

python scripts/sample.py
python scripts/sample.py runs/pixelcnn --class_labels 3 7 --per_class 5 --sampling.temperature 0.9
python scripts/sample.py --num_images 50000 --format npz --sampling.scheduler unipc --sampling.num_inference_steps 30
accelerate launch --num_processes 8 scripts/sample.py --num_images 50000 --speed.dtype bfloat16 --speed.compile true

Image i has the label i of the list and the seed `seed` + i: at one batch size the files are the same bytes for any
number of processes. Started again after an interruption, the same command goes on where it was.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm.auto import tqdm

from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import commit, provenance
from arcvq.compute.process import prepare_process
from arcvq.compute.resumable import ResumableMap
from arcvq.evaluation.networks import environment
from arcvq.runs.seeds import check_seed
from arcvq.sampling.options import SamplingConfig, SpeedConfig, class_labels
from arcvq.sampling.sampler import Sampler, images_of
from arcvq.sampling.writers import FORMATS, claim
from pipelines.class_conditional import ClassConditionalPipeline
from pipelines.figures.grids import save_class_samples

SHOWN = 200  # images of the grid

# Of a file of labels and of one of its lines, so that something else is not taken for one.
LABELS_BYTES, LINE_LENGTH = 2**26, 1000


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Sample images from a trained pipeline.")
    parser.add_argument("folder", type=str, nargs="?", default="runs/ldm", help="pipeline folder, or its run folder")
    parser.add_argument("--class_labels", type=str, nargs="+", default=None, help="ids or names; all where left out")
    parser.add_argument("--per_class", type=int, default=8, help="images of each class, where num_images is left out")
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


def main(args: Sequence[str] | None = None) -> None:
    """Samples the images that are not there yet, then writes all of them."""
    config = make_parser().parse(args)
    for name in ("per_class", "batch_size", "num_images"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    check_seed(config.seed)
    state = prepare_process()
    sampling, speed = config.sampling, config.speed
    sampler = Sampler(config.folder, sampling, speed)
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
    shown = shown_of_each_class(labels)
    grid = chosen(images_of(chunks), shown)
    save_class_samples(grid, labels[shown], sampler.pipeline.class_names, output / "grid.png", per_class=SHOWN)
    claim(output / name, chunks.folder)
    write(output / name, tqdm(images_of(chunks), total=len(labels), desc="writing", unit="image"), labels, seeds)
    written = {"settings": settings | {"format": config.format}, "provenance": provenance("sample", args)}
    unfinished = output / ".samples.json.tmp"
    unfinished.write_text(json.dumps(written, indent=2) + "\n")
    unfinished.replace(output / "samples.json")
    chunks.remove()  # not before the images are on disk
    print(f"{len(labels)} images: {output / name}, and {output / 'grid.png'}")


def wanted_labels(pipeline: ClassConditionalPipeline, config: Namespace) -> Tensor:
    """The label of each image, int64 (n,).

    Raises:
        ValueError: a label that is no class, options that exclude each other, or a file with too few labels.
    """
    if config.labels in ("balanced", "random"):
        classes = label_ids(pipeline, config.class_labels)
        pipeline.check_labels(classes, len(pipeline.class_names))
        if config.num_images is None and config.labels == "balanced":
            return torch.tensor(classes).repeat_interleave(config.per_class)
        number = config.per_class * len(classes) if config.num_images is None else config.num_images
        return class_labels(number, classes, config.labels, config.seed)
    if config.class_labels is not None:
        raise ValueError(f"--class_labels and the file --labels {config.labels} both say which classes: leave one out")
    if config.per_class != make_parser().get_defaults().per_class:
        raise ValueError(f"--per_class {config.per_class} changes nothing beside the file --labels {config.labels}")
    lines = label_lines(Path(config.labels))
    number = len(lines) if config.num_images is None else config.num_images
    if not 1 <= number <= len(lines):
        raise ValueError(f"{config.labels} has {len(lines)} labels, one in each line, for {number} images")
    ids: dict[str, int] = {}  # as lines repeat
    for line, text in islice(lines.items(), number):
        if text in ids:
            continue
        try:
            (ids[text],) = label_ids(pipeline, [text])
            pipeline.check_labels(ids[text], len(pipeline.class_names))
        except ValueError as error:
            raise ValueError(f"line {line} of {config.labels}: {error}") from error
    return torch.tensor([ids[text] for text in islice(lines.values(), number)])


def label_lines(file: Path) -> dict[int, str]:
    """The lines of a text file that are not blank, by their number from 1 on. ValueError: it is no text file."""
    try:
        if not file.is_file():
            raise ValueError(f"labels is balanced, random, or a text file that is there, got {str(file)!r}")
        if (size := file.stat().st_size) > LABELS_BYTES:
            raise ValueError(
                f"{file} has {size:,} bytes, more than {LABELS_BYTES:,}; --labels takes an id or a name per line"
            )
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text file; --labels takes an id or a name per line") from error
    long = next((number for number, line in enumerate(lines, start=1) if len(line) > LINE_LENGTH or "\0" in line), None)
    if long is not None:
        raise ValueError(f"line {long} of {file} is no id or name; --labels takes one per line")
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def label_ids(pipeline: ClassConditionalPipeline, names: list[str] | None) -> list[int]:
    """Class ids from ids or names as text; all classes where none is given. A name that is a class comes first."""
    known = pipeline.class_names
    if names is None:
        return list(known)
    numbers = re.compile(r"-?\d{1,18}")  # of more digits no 64-bit integer is sure to hold them
    return [
        int(name) if numbers.fullmatch(name) and name not in known.values() else pipeline.get_label_ids(name)[0]
        for name in names
    ]


def shown_of_each_class(labels: Tensor) -> list[int]:
    """Of each class the first images, by index: SHOWN of all classes together, or one of each."""
    per_class = max(1, SHOWN // len(labels.unique()))
    seen: dict[int, int] = {}
    shown = []
    for index, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= per_class:
            shown.append(index)
    return shown


def chosen(images: Iterator[Tensor], indices: Sequence[int]) -> Tensor:
    """The images (n, C, H, W) at these places, in rising order; no more are read than that takes."""
    wanted = set(indices)
    return torch.stack([image for index, image in enumerate(islice(images, max(indices) + 1)) if index in wanted])


def is_complete(output: Path, name: str, settings: dict[str, Any]) -> bool:
    """Whether the folder holds these samples already, as `name`.

    Raises:
        ValueError: it holds others.
    """
    file = output / "samples.json"
    if not file.is_file():
        return False
    try:
        there = json.loads(file.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what this script writes; remove it, or name another --output") from error
    asked = json.loads(json.dumps(settings))
    if differing := sorted(key for key in there.keys() | asked.keys() if there.get(key) != asked.get(key)):
        raise ValueError(
            f"{output} holds other samples: they differ in {', '.join(differing)}; remove it, or name another --output"
        )
    return (output / name).exists()
