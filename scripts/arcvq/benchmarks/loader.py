"""Measure how fast images are loaded for training, next to torchvision and webdataset => a table and a JSON file.

python scripts/benchmark.py loader
python scripts/benchmark.py loader --num_images 256 --cases "JPEG files,torchvision" --output runs/loader.json

The images are made from a seed: textures of 300 to 500 pixels a side, as JPEG of quality 92, in a temporary folder.
Each case loads all of them, shuffled, as float32 batches of one size, resized and cropped to the centre. The cases take
turns (A B A B) in one process with one thread; a time is that of the processor, so that the numbers are of one core.
The table names the peers that are not installed: pip install -e '.[benchmark]'.
"""

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import PIL.features
import torch
from tqdm.auto import tqdm

from arcvq.benchmarks.loader_peers import PEERS
from arcvq.benchmarks.made_images import write_forms
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import machine, provenance
from tokenizer.data import DataConfig, load_images, training_batches

# Our own cases => the form of the images, and whether shards are streamed.
OURS = {
    "JPEG files": ("files", False),
    "parquet": ("parquet", False),
    "parquet streamed": ("parquet", True),
    "tar streamed": ("tar", True),
}

HELP = HelpPage(
    examples=("arcvq benchmark loader", "arcvq benchmark loader --num_images 256 --rounds 3"),
    writes="OUTPUT: a JSON file with the protocol and the images a second of each case",
    following="arcvq train-tokenizer --dry_run says how many cores a training needs to load its images",
)


def make_parser() -> ScriptParser:
    """Return the parser of this command."""
    parser = ScriptParser("Measure how fast images are loaded, next to torchvision and webdataset.", page=HELP)
    parser.add_argument("--num_images", type=int, default=512, help="images of a pass")
    parser.add_argument("--image_size", type=int, default=256, help="side of the loaded images")
    parser.add_argument("--batch_size", type=int, default=32, help="images of a batch")
    parser.add_argument(
        "--rounds", type=int, default=5, help="passes of each case that are counted, after one that is not"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the images and their order")
    parser.add_argument("--cases", type=str | None, default=None, help="cases by name, with commas; None: all")
    parser.add_argument("--output", type=str, default="runs/loader.json", help="JSON file of the results")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Load the images by each case in turn, print the table and write it."""
    config = make_parser().parse(args)
    if config.rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {config.rounds}")
    if not 1 <= config.batch_size <= config.num_images:
        raise ValueError(f"batch_size must be in 1..{config.num_images}, the images of a pass, got {config.batch_size}")
    known = [*OURS, *PEERS]
    chosen = known if config.cases is None else config.cases.split(",")
    if unknown := set(chosen) - set(known):
        raise ValueError(f"unknown case {min(unknown)!r}; there are {', '.join(known)}")
    missing = [case for case in chosen if case in PEERS and importlib.util.find_spec(PEERS[case][0]) is None]
    chosen = [case for case in known if case in chosen and case not in missing]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as place, _caches_in(Path(place) / "cache"):
            folders = write_forms(Path(place), config.num_images, config.seed)
            image_bytes = sum(file.stat().st_size for file in folders["files"].rglob("*.jpg")) / config.num_images
            cases = {case: _passes(case, folders, config) for case in chosen}
            results = measure(cases, config.rounds)
    finally:
        torch.set_num_threads(threads)
    packages = ["pillow", *sorted({PEERS[case][0] for case in chosen if case in PEERS} - {"torchvision"})]
    protocol = provenance("benchmark loader", args, packages) | machine()
    protocol |= {name: config[name] for name in ("num_images", "image_size", "batch_size", "rounds", "seed")}
    protocol |= {
        "jpeg_bytes": round(image_bytes),
        "turbo": PIL.features.check("libjpeg_turbo"),
        "not_installed": missing,
    }
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"protocol": protocol, "results": results}, indent=2) + "\n")
    print(as_text(results, config.image_size, missing))
    print(f"results: {output}")


def _caches_in(folder: Path) -> Any:
    """Let `datasets`, and our indices of tar files, keep their caches in a folder."""
    return mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder)


def _passes(case: str, folders: dict[str, Path], config: Any) -> Callable[[int], Iterable[torch.Tensor]]:
    """Return a case's function: the number of a pass => its batches, float32 (B, 3, image_size, image_size)."""
    if case in PEERS:
        return lambda number: PEERS[case][1](folders, config.image_size, config.batch_size)
    form, streamed = OURS[case]
    images = load_images(
        DataConfig(name=str(folders[form]), image_size=config.image_size, channels=3, streaming=streamed), "train"
    )
    steps = len(images) // config.batch_size

    def batches(number: int) -> Iterable[torch.Tensor]:
        run = {"start_step": number * steps, "stop_step": (number + 1) * steps}
        return (
            batch["images"] for batch in training_batches(images, batch_size=config.batch_size, seed=config.seed, **run)
        )

    return batches


def measure(cases: dict[str, Callable[[int], Iterable[torch.Tensor]]], rounds: int) -> dict[str, dict[str, Any]]:
    """Load all images by each case in turn, `rounds` times after a first pass; return the numbers of each case."""
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    shapes = {}
    for number in tqdm(range(rounds + 1), desc="passes"):
        for case, passes in cases.items():
            began, images = time.process_time(), 0
            for batch in passes(number):
                images += len(batch)
                shapes[case] = tuple(batch.shape), batch.dtype
            if number:
                seconds[case].append((time.process_time() - began) / images)
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the cases load different batches: {shapes}")
    return {
        case: {
            "seconds_per_image": values,
            "images_per_second_and_core": 1 / statistics.median(values),
            "range": [1 / max(values), 1 / min(values)],
        }
        for case, values in seconds.items()
    }


def as_text(results: dict[str, dict[str, Any]], image_size: int, missing: Sequence[str]) -> str:
    """Return the table: images a second of one core, their range, and the share of torchvision's."""
    first = results.get("torchvision", next(iter(results.values())))["images_per_second_and_core"]
    reference = "torchvision" if "torchvision" in results else next(iter(results))
    lines = [f"images of {image_size} px a second of one core", f"  {'':22}{'median':>8}{'range':>18}  of {reference}"]
    for case, numbers in results.items():
        low, high = numbers["range"]
        rate = numbers["images_per_second_and_core"]
        lines.append(f"  {case:22}{rate:8.1f}{f'{low:.1f} - {high:.1f}':>18}{rate / first:8.2f}")
    return "\n".join([*lines, *(f"  {case:22}not installed" for case in missing)])
