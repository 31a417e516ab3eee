"""Samples images from a trained pipeline => PNG files and a grid.

python scripts/sample.py
python scripts/sample.py runs/pixelcnn --class_labels 3 7 --per_class 5 --sampling.temperature 0.9
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from command_line import ScriptParser, run_script
from PIL import Image
from sampling import SamplingConfig, default_device, sample_batches
from stage_one import load_pipeline
from threads import use_all_cores

from pipelines.class_labels import ClassConditionalPipeline
from pipelines.pictures import save_class_samples


def main(args: Sequence[str] | None = None) -> None:
    """Samples `per_class` images of every class asked for."""
    parser = ScriptParser("Sample images from a trained pipeline.")
    parser.add_argument("folder", type=str, nargs="?", default="runs/ldm", help="pipeline folder, or its run folder")
    parser.add_argument("--class_labels", type=str, nargs="+", default=None, help="ids or names; all where left out")
    parser.add_argument("--per_class", type=int, default=8, help="images of each class")
    parser.add_argument("--seed", type=int, default=0, help="the images have the seeds from this one on")
    parser.add_argument("--batch_size", type=int, default=64, help="images sampled at once")
    parser.add_argument("--output", type=str, default=None, help="folder for the images; None: FOLDER/samples-SEED")
    parser.add_class_arguments(SamplingConfig, "sampling")
    config = parser.parse(args)
    if config.per_class < 1 or config.batch_size < 1:
        raise ValueError(f"per_class and batch_size must be at least 1, got {config.per_class} and {config.batch_size}")

    use_all_cores()
    pipeline = load_pipeline(config.folder).to(default_device())
    options = SamplingConfig(**config.sampling.as_dict()).options(pipeline)
    classes = label_ids(pipeline, config.class_labels)
    labels = [label for label in classes for _ in range(config.per_class)]
    seeds = range(config.seed, config.seed + len(labels))

    images = torch.cat(list(sample_batches(pipeline, labels, seeds, config.batch_size, **options)))  # (n, C, H, W)
    output = Path(config.output or f"{config.folder}/samples-{config.seed}")
    output.mkdir(parents=True, exist_ok=True)
    for image, label, seed in zip(images, labels, seeds, strict=True):
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()  # (H, W, 3), or (H, W) in grey
        Image.fromarray(pixels).save(output / f"class-{label:04d}-seed-{seed:06d}.png")
    save_class_samples(images, labels, pipeline.class_names, output / "grid.png", per_class=config.per_class)
    print(f"{len(images)} images and grid.png: {output}")


def label_ids(pipeline: ClassConditionalPipeline, names: list[str] | None) -> list[int]:
    """Class ids from ids or names as text; all classes where none is given. A name that is a class comes first."""
    known = pipeline.class_names
    if names is None:
        return list(known)
    return [
        int(name) if name.lstrip("-").isdigit() and name not in known.values() else pipeline.get_label_ids(name)[0]
        for name in names
    ]


if __name__ == "__main__":
    run_script(main)
