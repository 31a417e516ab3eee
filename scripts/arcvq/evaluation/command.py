"""Measures a tokenizer, a pipeline, a folder of images or an npz => a JSON file with named numbers, and pictures.

python scripts/evaluate.py                                        whatever of runs/ is there
python scripts/evaluate.py reconstruction runs/tokenizer --lpips alex --extractor alexnet
python scripts/evaluate.py reconstruction runs/tokenizer --protocol official_jpeg
python scripts/evaluate.py generation runs/ldm --num_images 50000 --save_images npz
python scripts/evaluate.py generation samples.npz --protocol adm --reference VIRTUAL_imagenet256_labeled.npz
python scripts/evaluate.py statistics --reference train           the file that --protocol adm compares with
accelerate launch --num_processes 8 scripts/evaluate.py ...       the same numbers, sooner

Started again after an interruption, the same command goes on where it was. pipelines/protocols.py lists the protocols.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.cli.announced_data import announce, announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.compute.atomic_files import atomic_file
from arcvq.compute.process import prepare_process
from arcvq.evaluation.generation import evaluate_generation
from arcvq.evaluation.image_sources import DataSetImages, FolderImages, ImageSource, NpzImages
from arcvq.evaluation.networks import PACKAGES, check_count, default_extractor, make_measuring, refuse_skipping
from arcvq.evaluation.reconstruction import evaluate_reconstruction
from arcvq.evaluation.reference import write_statistics
from arcvq.runs.results import note_other_data
from arcvq.runs.settings import ARTEFACTS
from arcvq.sampling.options import SamplingConfig, SpeedConfig
from arcvq.sampling.writers import FORMATS
from pipelines.metrics.protocols import PROTOCOLS
from tokenizer.data import DataConfig
from tokenizer.losses.lpips import WeightFiles

# Options of the sampling, which change nothing of samples in files.
SAMPLED = (
    "seed",
    "labels",
    "batch_size",
    "save_images",
    *(f"sampling.{field.name}" for field in fields(SamplingConfig)),
    *(f"speed.{field.name}" for field in fields(SpeedConfig)),
)
RECONSTRUCTION, GENERATION, STATISTICS = "reconstruction", "generation", "statistics"
DEFAULT_FOLDERS = {RECONSTRUCTION: ("runs/tokenizer",), GENERATION: ("runs/ldm", "runs/pixelcnn")}
# Options that compare images with originals.
PAIRED = ("lpips", "ssim_window")
UNUSED = {
    RECONSTRUCTION: (*SAMPLED, "reference"),
    GENERATION: PAIRED,
    STATISTICS: (*SAMPLED, *PAIRED, "protocol"),
}

HELP = HelpPage(
    common=(
        *("output", "protocol", "num_images", "seed", "reference", "extractor", "lpips", "save_images", "batch_size"),
        *("data.name", "data.test_split", "data.num_workers"),
        *("sampling.guidance_scale", "sampling.num_inference_steps", "sampling.temperature"),
    ),
    examples=(
        "arcvq evaluate",
        "arcvq evaluate reconstruction runs/tokenizer --lpips alex",
        "arcvq evaluate generation runs/ldm --num_images 50000",
        "arcvq evaluate generation samples.npz --protocol adm --reference VIRTUAL_imagenet256_labeled.npz",
    ),
    writes="OUTPUT: a JSON file with the protocol, the settings and the numbers, and pictures",
    following="arcvq evaluate compare FIRST SECOND, arcvq evaluate schedulers runs/ldm, arcvq reproduce table_1",
)


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser(
        "Measure a tokenizer (reconstruction), or a pipeline or images in files (generation).", page=HELP
    )
    tasks = [*DEFAULT_FOLDERS, STATISTICS, "all"]
    parser.add_argument("task", nargs="?", choices=tasks, default="all", help="all: whatever of runs/ is there")
    parser.add_argument(
        "folder", type=str, nargs="?", default=None, help="saved folder or its run folder, folder of images, or npz"
    )
    parser.add_argument("--output", type=str, default=None, help="folder of the results; None: FOLDER/evaluation")
    add_measuring_options(parser)
    return parser


def add_measuring_options(parser: ScriptParser) -> None:
    """The options of what is measured, and how."""
    parser.add_argument(
        "--protocol", choices=list(PROTOCOLS), default=None, help="None: rfid; of samples torch-fidelity, or adm"
    )
    parser.add_argument(
        "--num_images", type=int | None, default=None, help="None: 500 samples, or all images of the files or the split"
    )
    parser.add_argument("--seed", type=int, default=0, help="the samples have the seeds from this one on")
    parser.add_argument("--labels", choices=["balanced", "random"], default="balanced", help="classes of the samples")
    parser.add_argument("--batch_size", type=int, default=100, help="images sampled at once")
    parser.add_argument(
        "--reference", type=str, default="test", help="train or test split of the data, or a file of statistics"
    )
    parser.add_argument(
        "--extractor",
        type=str | None,
        default=None,
        help="inception, alexnet, dinov2 or digits-classifier; None: the last for the digits, inception for samples",
    )
    parser.add_argument("--resize", type=int | None, default=None, help="side of the extractor's images in pixels")
    parser.add_argument("--dinov2", type=str, default="facebook/dinov2-large", help="id on the Hub, or folder")
    parser.add_argument(
        "--lpips", choices=["alex", "vgg", "squeeze"], default=None, help="network of LPIPS; None: none"
    )
    parser.add_argument("--ssim_window", choices=["uniform", "gaussian"], default="uniform", help="window of SSIM")
    parser.add_argument(
        "--dtype",
        choices=["float64", "float32"],
        default="float64",
        help="of the networks that measure; with float32 the sixth digit depends on the batch",
    )
    parser.add_argument("--save_images", choices=list(FORMATS), default=None, help="keep the samples, in this form")
    parser.add_argument("--cache_dir", type=str, default="runs/cache", help="where features of real images are kept")
    parser.add_class_arguments(WeightFiles, "weights")
    parser.add_class_arguments(SamplingConfig, "sampling")
    parser.add_class_arguments(SpeedConfig, "speed")
    parser.add_class_arguments(DataConfig, "data")


def main(args: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = make_parser()
    config = parser.parse(args)
    refuse_skipping(config)
    tasks = to_do(config)
    state = prepare_process()
    settings = parser.settings(config)
    if config.task == STATISTICS:
        refuse_unused(config, parser.get_defaults(), UNUSED[STATISTICS], "of statistics")
        statistics(config, provenance("evaluate", args, PACKAGES), settings)
        return
    for task, folders in tasks.items():
        for folder in folders:
            source = image_source(folder)
            if config.task != "all":
                of_files = SAMPLED if source is not None and task == GENERATION else ()
                refuse_unused(config, parser.get_defaults(), (*UNUSED[task], *of_files), f"of {task}, {folder}")
            if state.is_main_process:
                note_other_data(folder, config.data)
            output = output_folder(folder, config, has_model=source is None)
            evaluate = evaluate_reconstruction if task == RECONSTRUCTION else evaluate_generation
            measured = evaluate(folder if source is None else source, config, output)
            if measured is not None:
                protocol = {"task": task, "folder": str(folder), **measured.protocol}
                protocol |= provenance("evaluate", args, PACKAGES)
                write(output / f"{result_name(task, config)}.json", protocol, settings, measured.numbers)
                measured.chunks.remove()  # not before their numbers are on disk


def refuse_unused(config: Namespace, defaults: Namespace, names: Sequence[str], what: str) -> None:
    """ValueError where an option was set that changes nothing of what is asked for."""
    for name in names:
        value = attrgetter(name)(config)
        if value != attrgetter(name)(defaults):
            raise ValueError(f"--{name} {value} changes nothing {what}: leave it out")


def to_do(config: Namespace) -> dict[str, Sequence[str]]:
    """The folders to measure, by task.

    Raises:
        ValueError: nothing to measure, or options that do not concern everything that would be measured.
    """
    if config.task == "all" and config.folder is not None:
        raise ValueError(f"say what to measure of {config.folder!r}: reconstruction or generation")
    if config.task == STATISTICS:
        return {}
    wrong = config.protocol is not None and PROTOCOLS[config.protocol].measures != config.task
    if wrong:
        fitting = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.measures == config.task)
        raise ValueError(f"protocol {config.protocol} is none of {config.task}; take {fitting or 'a task'}")
    if config.task != "all":
        return {config.task: (config.folder or DEFAULT_FOLDERS[config.task][0],)}
    if config.sampling != SamplingConfig() or config.speed != SpeedConfig():
        raise ValueError(
            "options of sampling and speed concern one kind of pipeline: name its folder, as in generation runs/ldm"
        )
    found = {task: [name for name in names if Path(name).is_dir()] for task, names in DEFAULT_FOLDERS.items()}
    if not any(found.values()):
        raise ValueError("runs/ holds nothing to measure; train with scripts/train_tokenizer.py, or name a folder")
    return found


def image_source(folder: str) -> ImageSource | None:
    """The images of an npz, or of a folder that holds neither a model nor a run; None for those.

    Raises:
        ValueError: see `FolderImages` and `NpzImages`.
    """
    path = Path(folder)
    if path.is_file() and path.suffix == ".npz":
        return NpzImages(path)
    indices = ("config.json", "model_index.json", "config.yaml", *ARTEFACTS, "vqvae")
    if not path.is_dir() or any((path / index).exists() for index in indices):
        return None
    images = FolderImages(path)
    announce(images.line)
    return images


def output_folder(folder: str, config: Namespace, has_model: bool) -> Path:
    """Choose where the results are written: within a saved folder or run, but beside a file or folder of images.

    Nothing is written into the data set, where a picture would be one of its images: of images in it, the results go
    to runs/evaluation.
    """
    path = Path(folder)
    if config.output:
        return Path(config.output, path.name) if config.task == "all" else Path(config.output)
    if has_model:
        return path / "evaluation"
    name = path.stem if path.is_file() else path.name
    beside = path.with_name(f"{name}-evaluation")
    if beside.resolve().is_relative_to(Path(config.data.name).expanduser().resolve()):
        return Path("runs/evaluation", f"{path.resolve().parent.name}-{name}")
    return beside


def result_name(task: str, config: Namespace) -> str:
    """The result's file, without its ending: the task, and what was named of protocol, extractor and reference."""
    named = [config.protocol, config.extractor, Path(config.reference).stem if config.reference != "test" else None]
    return "-".join([task, *(name for name in named if name)])


def statistics(config: Namespace, facts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Writes the file of statistics of a split, or of images in files, and what it was made of."""
    if config.reference not in ("train", "test"):
        raise ValueError(f"statistics are those of --reference train or test, not of {config.reference}")
    source = None if config.folder is None else image_source(config.folder)
    if source is None and config.folder is not None:
        raise ValueError(f"{config.folder!r} is neither a folder of images nor an npz; leave it out for the data set")
    if source is None:
        splits = announced_splits(config.data)
        images = splits.train if config.reference == "train" else splits.held_out
        source, name = DataSetImages(images), f"{Path(images.name).name}-{images.split}"
        facts = {"data": images.name, "split": images.split, **facts}
    else:
        name = Path(config.folder).stem
    source = source.first(check_count(config.num_images, len(source), f"images in {source.name}"))
    measuring = make_measuring(config, PROTOCOLS["adm"], default_extractor(config, "inception"))
    measuring.extractor.check_size(*source.image_size)
    name = f"{name}-{measuring.extractor.name}"
    output = Path(config.output or "runs/statistics")
    output.mkdir(parents=True, exist_ok=True)
    write_statistics(source, measuring.extractor, Path(config.cache_dir), output / f"{name}.npz")
    if PartialState().is_main_process:
        facts = {"images": len(source), "fingerprint": source.fingerprint, **facts}
        protocol = {"task": STATISTICS, "extractor": measuring.describe()["extractor"], **facts}
        write(output / f"{name}.json", protocol, settings, {"images": len(source)})
        print(f"statistics: {output / name}.npz")


def write(file: Path, protocol: dict[str, Any], settings: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Writes the JSON and prints the numbers with what they are of."""
    # JSON has no infinity, which the PSNR of equal images is.
    plain = {
        name: str(value) if isinstance(value, float) and not isfinite(value) else value
        for name, value in numbers.items()
    }
    result = {"protocol": protocol, "settings": settings, "numbers": plain}
    with atomic_file(file) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(f"{file}: {described(protocol)}")
    width = max(map(len, numbers))
    for name, value in numbers.items():
        print(f"  {name:{width}}  {value:.4f}" if isinstance(value, float) else f"  {name:{width}}  {value}")


def described(protocol: dict[str, Any]) -> str:
    """The protocol in a line."""
    number = protocol.get("samples", protocol.get("images"))
    asked = protocol.get("asked")
    count = f"{number} images" if asked is None or number >= asked else f"{number} of the {asked} images it asks for"
    extractor = (protocol.get("extractor") or {}).get("name")
    parts = [protocol.get("protocol", protocol["task"]), count]
    parts += [f"{protocol['split']} split of {protocol['data']}"] if protocol["task"] == RECONSTRUCTION else []
    parts += [f"against {protocol['reference']}"] if protocol["task"] == GENERATION else []
    parts += [f"features of {extractor}"] if extractor else []
    return ", ".join(parts)
