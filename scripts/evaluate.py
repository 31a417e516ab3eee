"""Measures a trained tokenizer or pipeline => a JSON file with the numbers and their protocol, and pictures.

python scripts/evaluate.py                                        whatever of runs/ is there
python scripts/evaluate.py reconstruction runs/tokenizer
python scripts/evaluate.py generation runs/ldm --num_images 1000
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import ScriptParser, run_script
from jsonargparse import Namespace
from provenance import provenance
from sampling import RGBImages, SamplingConfig, default_device, reconstruct, sample_batches
from stage_one import check_images, load_pipeline, load_tokenizer, note_other_data
from threads import use_all_cores

from pipelines.features import IMAGE_SIZE, class_accuracy, digit_classifier, register_digit_extractor
from pipelines.metrics import INCEPTION_SCORE_SPLITS, generation_metrics, inception_extractor
from pipelines.pictures import plot_codebook, save_class_samples, save_comparison
from tokenizer.data import DataConfig, ImageDataset, load_images

RECONSTRUCTION, GENERATION = "reconstruction", "generation"
DEFAULT_FOLDERS = {RECONSTRUCTION: ("runs/tokenizer",), GENERATION: ("runs/ldm", "runs/pixelcnn")}


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Measure a trained tokenizer (reconstruction) or pipeline (generation).")
    tasks = [*DEFAULT_FOLDERS, "all"]
    parser.add_argument("task", nargs="?", choices=tasks, default="all", help="all: both, of whatever runs/ holds")
    parser.add_argument("folder", type=str, nargs="?", default=None, help="saved folder, or its run folder")
    parser.add_argument("--num_images", type=int, default=500, help="images to generate, equally many of each class")
    parser.add_argument("--seed", type=int, default=0, help="the images have the seeds from this one on")
    parser.add_argument("--batch_size", type=int, default=100, help="images sampled at once")
    parser.add_argument("--reference", choices=["train", "test"], default="test", help="real images to compare with")
    parser.add_argument(
        "--extractor",
        choices=["inception", "digits-classifier"],
        default=None,
        help="features of the generation metrics; None: digits-classifier for the digits, else inception",
    )
    parser.add_argument("--inception_weights", type=str, default=None, help="file; None: torch-fidelity's own place")
    parser.add_argument("--cache_dir", type=str, default="runs/cache", help="where the digits classifier is kept")
    parser.add_argument("--output", type=str, default=None, help="folder of the results; None: FOLDER/evaluation")
    parser.add_class_arguments(SamplingConfig, "sampling")
    parser.add_class_arguments(DataConfig, "data")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = make_parser()
    config = parser.parse(args)
    tasks = to_do(config)
    use_all_cores()
    settings = parser.settings(config)
    for task, folders in tasks.items():
        for folder in folders:
            note_other_data(folder, DataConfig(**config.data.as_dict()))
            evaluate = evaluate_reconstruction if task == RECONSTRUCTION else evaluate_generation
            output = Path(config.output or f"{folder}/evaluation")
            if config.output and config.task == "all":
                output = output / Path(folder).name
            result = evaluate(folder, config, output)
            protocol = {"task": task, "folder": str(folder), **result.pop("protocol"), **provenance("evaluate", args)}
            write(output / f"{task}.json", {"protocol": protocol, "settings": settings, "numbers": result})


def to_do(config: Namespace) -> dict[str, Sequence[str]]:
    """The folders to measure, by task.

    Raises:
        ValueError: nothing to measure, or options that do not concern everything that would be measured.
    """
    if config.task == "all" and config.folder is not None:
        raise ValueError(f"say what to measure of {config.folder!r}: reconstruction or generation")
    if config.task != "all":
        return {config.task: (config.folder or DEFAULT_FOLDERS[config.task][0],)}
    if any(value is not None for value in config.sampling.as_dict().values()):
        raise ValueError("sampling options concern one kind of pipeline: name its folder, as in generation runs/ldm")
    found = {task: [name for name in names if Path(name).is_dir()] for task, names in DEFAULT_FOLDERS.items()}
    if not any(found.values()):
        raise ValueError("runs/ holds nothing to measure; train with scripts/train_tokenizer.py, or name a folder")
    return found


def evaluate_reconstruction(folder: str, config: Namespace, output: Path) -> dict[str, Any]:
    """PSNR, SSIM, L1, usage and perplexity over the whole test split."""
    tokenizer = load_tokenizer(folder).to(default_device())
    images = load_images(DataConfig(**config.data.as_dict()), "test")
    check_images(tokenizer, images)
    originals, reconstructions, metrics = reconstruct(tokenizer, images, config.data.num_workers)
    output.mkdir(parents=True, exist_ok=True)
    save_comparison(originals[:32], reconstructions[:32], output / "reconstruction.png")
    plot_codebook(tokenizer.codebook.detach().cpu(), metrics.counts, output / "codebook.png")
    return {"protocol": describe(images), **metrics.result()}


def evaluate_generation(folder: str, config: Namespace, output: Path) -> dict[str, Any]:
    """Frechet distance, Inception score, precision and recall of class-balanced samples."""
    pipeline = load_pipeline(folder).to(default_device())
    data = DataConfig(**config.data.as_dict())
    reference = load_images(data, config.reference)
    check_images(pipeline.vqvae, reference)
    options = SamplingConfig(**config.sampling.as_dict()).options(pipeline)
    if config.batch_size < 1 or config.seed < 0:
        raise ValueError(f"batch_size must be above 0 and seed not below, got {config.batch_size} and {config.seed}")
    digits = (config.extractor or ("digits-classifier" if data.name == "digits" else "inception")) != "inception"
    fewest = INCEPTION_SCORE_SPLITS
    if min(config.num_images, len(reference)) < fewest:
        raise ValueError(
            f"the metrics need {fewest} images on each side, got num_images {config.num_images} and {len(reference)} "
            "reference images"
        )
    if digits and reference.image_size != IMAGE_SIZE:
        raise ValueError(f"the digits-classifier reads images of {IMAGE_SIZE} pixels; take --extractor inception")
    # Before the sampling: missing weights are no news to have after hours.
    classifier = digit_classifier(config.cache_dir) if digits else None
    extractor = register_digit_extractor(classifier) if digits else inception_extractor(config.inception_weights)

    labels = [index % len(pipeline.class_names) for index in range(config.num_images)]
    seeds = range(config.seed, config.seed + len(labels))
    images = torch.cat(list(sample_batches(pipeline, labels, seeds, config.batch_size, **options)))
    rgb = images.expand(-1, 3, -1, -1)
    device = torch.device(default_device())
    numbers = generation_metrics(RGBImages(rgb), RGBImages(reference), extractor, device=device)
    if classifier is not None:
        accuracy = class_accuracy(classifier, rgb, torch.tensor(labels))
        numbers[f"class_accuracy[{extractor.name}]"] = accuracy
    output.mkdir(parents=True, exist_ok=True)
    save_class_samples(images, labels, pipeline.class_names, output / "generation.png")
    return {"protocol": describe(reference) | {"seed": config.seed, "sampling": options}, **numbers}


def describe(images: ImageDataset) -> dict[str, Any]:
    """The data set that was measured on or against."""
    names = {"data": images.name, "split": images.split, "images": len(images), "image_size": images.image_size}
    return names | {"fingerprint": images.fingerprint()}


def write(file: Path, result: dict[str, Any]) -> None:
    """Writes the JSON and prints the numbers."""
    file.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(f"{file}:")
    for name, value in result["numbers"].items():
        print(f"  {name}: {value:.4f}" if isinstance(value, float) else f"  {name}: {value}")


if __name__ == "__main__":
    run_script(main)
