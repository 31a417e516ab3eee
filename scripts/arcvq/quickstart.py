"""Train, sample and evaluate everything on the embedded digits, and write a report.

    python scripts/quickstart.py

Trains a tokenizer and both priors with the settings of configs/digits, samples every class, and measures. After an
interruption, the same command continues where it stopped.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.evaluation import command as evaluate
from arcvq.runs.results import load_tokenizer
from arcvq.sampling.reconstructions import reconstruct
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.preview import read_final_samples
from pipelines.figures.grids import plot_curves, read_metrics, save_class_samples
from pipelines.figures.report import Picture, Section, write_report
from pipelines.metrics.distributions import INCEPTION_SCORE_SPLITS, NEIGHBOURS
from tokenizer.data import DataConfig, load_images

# DDIM steps of the measured samples; the pipeline's default, 250, takes five times as long.
EVALUATION_STEPS = 50

HELP = HelpPage(
    examples=("arcvq quickstart", "arcvq quickstart --max_steps 200 --output_dir runs/short"),
    writes="OUTPUT_DIR/quickstart/report.html, numbers.json and pictures; the runs tokenizer, ldm and pixelcnn",
    following="arcvq sample runs/ldm, or arcvq train-tokenizer --config mnist/arcvq.yaml",
)


def main(args: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, print the numbers and write the report."""
    parser = ScriptParser("Train, sample and evaluate both stages on the embedded digits.", page=HELP)
    parser.add_argument("--output_dir", type=str, default="runs", help="folder of the three runs and of the report")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and of the samples")
    parser.add_argument(
        "--max_steps", type=int | None, default=None, help="of each training; None: what its config says"
    )
    parser.add_argument("--num_images", type=int, default=500, help="images that are generated to be measured")
    config = parser.parse(args)
    least = max(NEIGHBOURS + 1, INCEPTION_SCORE_SPLITS)
    if config.num_images < least:  # checked here, before the trainings
        raise ValueError(f"num_images must be at least {least}, got {config.num_images}")
    start = time.monotonic()
    runs = Path(config.output_dir)
    tokenizer, ldm, pixelcnn = (str(runs / name) for name in ("tokenizer", "ldm", "pixelcnn"))
    shared = [f"--run.output_dir={runs}", f"--run.seed={config.seed}"]
    shared += [] if config.max_steps is None else [f"--optim.max_steps={config.max_steps}"]

    train_tokenizer.main(shared)
    train_ldm.main([*shared, f"--tokenizer={tokenizer}"])
    train_pixelcnn.main([*shared, f"--tokenizer={tokenizer}"])

    evaluate.main(["reconstruction", tokenizer])
    sampling = [f"--seed={config.seed}", f"--num_images={config.num_images}", f"--cache_dir={runs / 'cache'}"]
    evaluate.main(["generation", ldm, *sampling, f"--sampling.num_inference_steps={EVALUATION_STEPS}"])
    evaluate.main(["generation", pixelcnn, *sampling])

    folder = runs / "quickstart"
    folder.mkdir(parents=True, exist_ok=True)
    save_overview(Path(tokenizer), Path(ldm), Path(pixelcnn), folder / "overview.png")
    results = {
        "tokenizer": read_result(Path(tokenizer), "reconstruction"),
        "ldm": read_result(Path(ldm), "generation"),
        "pixelcnn": read_result(Path(pixelcnn), "generation"),
    }
    (folder / "numbers.json").write_text(json.dumps(results, indent=2) + "\n")
    page = folder / "report.html"
    write_report(page, "ArcVQ on handwritten digits", sections(runs, results, folder))
    for name, result in results.items():
        print(f"{name}: {', '.join(f'{key} {show(value)}' for key, value in result['numbers'].items())}")
    print(f"report: {page} ({(time.monotonic() - start) / 60:.1f} minutes)")


def save_overview(tokenizer: Path, ldm: Path, pixelcnn: Path, file: Path) -> None:
    """Draw one digit per class: held-out originals, their reconstructions, and samples of both priors."""
    test = load_images(DataConfig(), "test")
    first = [(test.labels == label).nonzero()[0].item() for label in range(test.num_classes)]
    originals, reconstructions, _ = reconstruct(load_tokenizer(str(tokenizer)), Subset(test, first))
    rows = {
        "original": originals,
        "reconstruction": reconstructions,
        "latent diffusion": read_final_samples(ldm / "samples"),
        "PixelCNN": read_final_samples(pixelcnn / "samples"),
    }
    row_of_image = [row for row, images in enumerate(rows.values()) for _ in images]
    save_class_samples(torch.cat(list(rows.values())), row_of_image, list(rows), file)


def sections(runs: Path, results: dict[str, Any], pictures: Path) -> list[Section]:
    """Make the report's sections from the files of the runs."""
    curves = {name: pictures / f"curves-{name}.png" for name in results}
    for name, picture in curves.items():
        plot_curves(read_metrics(runs / name / "metrics.jsonl"), picture)
    evaluation = runs / "tokenizer" / "evaluation"
    return [
        Section(
            "Overview",
            "One digit of each class: held out, reconstructed from its codes, and sampled from both priors.",
            (Picture(pictures / "overview.png"),),
        ),
        Section(
            "Reconstruction",
            f"Held-out digits above what the tokenizer makes of their codes. {protocol(results['tokenizer'])}",
            (Picture(evaluation / "reconstruction.png", "originals above reconstructions", pixelated=True),),
            results["tokenizer"]["numbers"],
        ),
        Section(
            "Codebook",
            "Left: the norm of each code against how often the held-out digits use it. Right: the distances between "
            "all codes.",
            (Picture(evaluation / "codebook.png", "the codebook after training"),),
        ),
        *(
            Section(
                title,
                f"Samples of every class, the first ones of those measured. {protocol(results[name])}",
                (Picture(runs / name / "evaluation" / "generation.png", "one class per row, none selected"),),
                results[name]["numbers"],
            )
            for title, name in (("Latent diffusion", "ldm"), ("PixelCNN", "pixelcnn"))
        ),
        Section(
            "Curves",
            "Numbers that begin with test are of held-out digits.",
            tuple(Picture(picture, f"the training of {name}") for name, picture in curves.items()),
        ),
        Section(
            "Again",
            "These commands repeat the numbers above.",
            commands=tuple(result["protocol"]["command"] for result in results.values()),
        ),
    ]


def protocol(result: dict[str, Any]) -> str:
    """Describe in a sentence which images were measured."""
    facts = result["protocol"]
    sampled = "".join(f", {name} {value}" for name, value in facts.get("sampling", {}).items())
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    return f"Measured on the {facts['images']} images of the {facts['split']} split of {facts['data']}{seed}{sampled}."


def read_result(run: Path, task: str) -> dict[str, Any]:
    """Read the result that the evaluation has written for a run."""
    return json.loads((run / "evaluation" / f"{task}.json").read_text())


def show(value: float | int | str) -> str:
    """Format a number for the terminal."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
