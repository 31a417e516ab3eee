"""Measure a tokenizer, a pipeline, a folder of images or an npz => a JSON file with named numbers, and pictures.

python scripts/evaluate.py                                        all default folders in runs/ that exist
python scripts/evaluate.py reconstruction runs/tokenizer --lpips alex --extractor alexnet
python scripts/evaluate.py reconstruction runs/tokenizer --protocol official_jpeg
python scripts/evaluate.py generation runs/ldm --num_images 50000 --save_images npz
python scripts/evaluate.py generation samples.npz --protocol adm --reference VIRTUAL_imagenet256_labeled.npz
python scripts/evaluate.py statistics --reference train           the file that --protocol adm compares with
accelerate launch --multi_gpu --num_processes 8 scripts/evaluate.py ...       the same numbers, sooner

After an interruption, the same command continues where it stopped. pipelines/metrics/protocols.py lists the protocols.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.compute.precision import full_float32
from arcvq.compute.process import prepare_process
from arcvq.evaluation.generation import evaluate_generation
from arcvq.evaluation.image_sources import DataSetImages, open_image_source
from arcvq.evaluation.networks import PACKAGES, check_count, default_extractor, make_metric_networks, refuse_skipping
from arcvq.evaluation.options import (
    DEFAULT_FOLDERS,
    GENERATION,
    RECONSTRUCTION,
    SAMPLED,
    STATISTICS,
    UNUSED,
    add_measuring_options,
    refuse_unused,
)
from arcvq.evaluation.reconstruction import evaluate_reconstruction
from arcvq.evaluation.reference import write_statistics
from arcvq.evaluation.result import write_result
from arcvq.runs.results import note_other_data
from arcvq.sampling.options import SamplingConfig, SpeedConfig
from pipelines.metrics.protocols import PROTOCOLS

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
    """Make the parser of `arcvq evaluate`."""
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


@full_float32()
def main(args: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = make_parser()
    config = parser.parse(args)
    refuse_skipping(config)
    tasks = folders_to_measure(config)
    state = prepare_process()
    settings = parser.settings(config)
    if config.task == STATISTICS:
        refuse_unused(config, parser.get_defaults(), UNUSED[STATISTICS], "of statistics")
        evaluate_statistics(config, provenance("evaluate", args, PACKAGES), settings)
        return
    for task, folders in tasks.items():
        for folder in folders:
            source = open_image_source(folder)
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
                write_result(output / f"{result_name(task, config)}.json", protocol, settings, measured.numbers)
                measured.chunks.remove()  # only now are their numbers on disk


def folders_to_measure(config: Namespace) -> dict[str, Sequence[str]]:
    """List the folders to measure, by task.

    Raises:
        ValueError: no folder exists, or options do not concern everything that would be measured.
    """
    if config.task == "all" and config.folder is not None:
        raise ValueError(f"say what to measure of {config.folder!r}: reconstruction or generation")
    if config.task == STATISTICS:
        return {}
    if config.protocol is not None and PROTOCOLS[config.protocol].measures != config.task:
        fitting = ", ".join(name for name, protocol in PROTOCOLS.items() if protocol.measures == config.task)
        raise ValueError(f"protocol {config.protocol} is none of {config.task}; take {fitting or 'a task'}")
    if config.task != "all":
        return {config.task: (config.folder or DEFAULT_FOLDERS[config.task][0],)}
    if config.sampling != SamplingConfig() or config.speed != SpeedConfig():
        raise ValueError(
            "options of sampling and speed concern one kind of pipeline: name its folder, as in generation runs/ldm"
        )
    folders = {task: [name for name in names if Path(name).is_dir()] for task, names in DEFAULT_FOLDERS.items()}
    if not any(folders.values()):
        raise ValueError("runs/ holds nothing to measure; train with arcvq train-tokenizer, or name a folder")
    return folders


def output_folder(folder: str, config: Namespace, has_model: bool) -> Path:
    """Choose where the results are written: inside a saved folder or run, but next to a file or folder of images.

    Results for images inside the data set go to runs/evaluation, because a picture in the data set would become one of
    its images.
    """
    path = Path(folder)
    if config.output:
        return Path(config.output, path.name) if config.task == "all" else Path(config.output)
    if has_model:
        return path / "evaluation"
    name = path.stem if path.is_file() else path.name
    neighbour = path.with_name(f"{name}-evaluation")
    if neighbour.resolve().is_relative_to(Path(config.data.name).expanduser().resolve()):
        return Path("runs/evaluation", f"{path.resolve().parent.name}-{name}")
    return neighbour


def result_name(task: str, config: Namespace) -> str:
    """Name the result's file, without ending: the task, then protocol, extractor and reference if they are given."""
    named = [config.protocol, config.extractor, Path(config.reference).stem if config.reference != "test" else None]
    return "-".join([task, *(name for name in named if name)])


def evaluate_statistics(config: Namespace, facts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the file of statistics of a split or of images in files, and a JSON that describes it."""
    if config.reference not in ("train", "test"):
        raise ValueError(f"statistics are those of --reference train or test, not of {config.reference}")
    source = None if config.folder is None else open_image_source(config.folder)
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
    networks = make_metric_networks(config, PROTOCOLS["adm"], default_extractor(config, "inception"))
    networks.extractor.check_size(*source.image_size)
    name = f"{name}-{networks.extractor.name}"
    output = Path(config.output or "runs/statistics")
    output.mkdir(parents=True, exist_ok=True)
    write_statistics(source, networks.extractor, Path(config.cache_dir), output / f"{name}.npz")
    if PartialState().is_main_process:
        facts = {"images": len(source), "fingerprint": source.fingerprint, **facts}
        protocol = {"task": STATISTICS, "extractor": networks.describe()["extractor"], **facts}
        write_result(output / f"{name}.json", protocol, settings, {"images": len(source)})
        print(f"statistics: {output / name}.npz")
