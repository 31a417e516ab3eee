"""The whole road on the embedded digits, with the settings of configs/digits: tokenizer, both priors, samples of every
class, evaluation, and one report that shows it all.

    python scripts/quickstart.py

Started again it goes on where it was.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import train_ldm
import train_pixelcnn
import train_tokenizer
from command_line import ScriptParser, run_script

from pipelines.pictures import plot_curves, read_metrics
from pipelines.report import Picture, Section, write_report

# DDIM steps of the samples that are measured; 250 is the pipeline's default and takes five times as long.
EVALUATION_STEPS = 50


def main(args: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, measures it, prints the numbers and writes the report."""
    parser = ScriptParser("Train, sample and evaluate both stages on the embedded digits.")
    parser.add_argument("--output_dir", type=str, default="runs", help="folder of the three runs and of the report")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings and of the samples")
    parser.add_argument("--num_images", type=int, default=500, help="images that are generated to be measured")
    config = parser.parse(args)
    began = time.monotonic()
    runs = Path(config.output_dir)
    tokenizer, ldm, pixelcnn = (str(runs / name) for name in ("tokenizer", "ldm", "pixelcnn"))
    shared = [f"--run.output_dir={runs}", f"--run.seed={config.seed}"]

    train_tokenizer.main(shared)
    train_ldm.main([*shared, f"--tokenizer={tokenizer}"])
    train_pixelcnn.main([*shared, f"--tokenizer={tokenizer}"])

    evaluate.main(["reconstruction", tokenizer])
    sampling = [f"--seed={config.seed}", f"--num_images={config.num_images}", f"--cache_dir={runs / 'cache'}"]
    evaluate.main(["generation", ldm, *sampling, f"--sampling.num_inference_steps={EVALUATION_STEPS}"])
    evaluate.main(["generation", pixelcnn, *sampling])

    page = runs / "quickstart" / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    write_report(page, "ArcVQ on handwritten digits", sections(Path(tokenizer), Path(ldm), Path(pixelcnn), page.parent))
    print(f"report: {page} ({(time.monotonic() - began) / 60:.1f} minutes)")


def sections(tokenizer: Path, ldm: Path, pixelcnn: Path, pictures: Path) -> list[Section]:
    """The report's sections, from what the runs have written."""
    curves = {run: pictures / f"curves-{run.name}.png" for run in (tokenizer, ldm, pixelcnn)}
    for run, picture in curves.items():
        plot_curves(read_metrics(run / "metrics.jsonl"), picture)
    reconstruction = read_result(tokenizer, "reconstruction")
    return [
        Section(
            "Reconstruction",
            f"Held-out digits above what the tokenizer makes of their codes. {protocol(reconstruction)}",
            (Picture(tokenizer / "evaluation" / "reconstruction.png", "originals above reconstructions", True),),
            reconstruction["numbers"],
        ),
        Section(
            "Codebook",
            "Left: the norm of each code against how often the held-out digits use it. Right: the distances between "
            "all codes.",
            (Picture(tokenizer / "evaluation" / "codebook.png", "the codebook after training"),),
        ),
        *(generation(title, run) for title, run in (("Latent diffusion", ldm), ("PixelCNN", pixelcnn))),
        Section(
            "Curves",
            "Numbers that begin with test are of held-out digits.",
            tuple(Picture(picture, f"the training of {run.name}") for run, picture in curves.items()),
        ),
        Section("Again", "These commands repeat the numbers above.", commands=commands(tokenizer, ldm, pixelcnn)),
    ]


def generation(title: str, run: Path) -> Section:
    """Samples by class and their numbers."""
    result = read_result(run, "generation")
    text = f"Samples of every class, the first ones of those measured. {protocol(result)}"
    picture = Picture(run / "evaluation" / "generation.png", "one class per row, none selected")
    return Section(title, text, (picture,), result["numbers"])


def protocol(result: dict[str, Any]) -> str:
    """What the numbers were measured on, in a sentence."""
    facts = result["protocol"]
    sampled = "".join(f", {name} {value}" for name, value in facts.get("sampling", {}).items())
    seed = f", seed {facts['seed']}" if "seed" in facts else ""
    return f"Measured on the {facts['images']} images of the {facts['split']} split of {facts['data']}{seed}{sampled}."


def commands(*runs: Path) -> tuple[str, ...]:
    """The evaluation commands of the runs."""
    results = [read_result(run, "reconstruction" if run.name == "tokenizer" else "generation") for run in runs]
    return tuple(result["protocol"]["command"] for result in results)


def read_result(run: Path, task: str) -> dict[str, Any]:
    """What evaluate.py wrote about a run."""
    return json.loads((run / "evaluation" / f"{task}.json").read_text())


if __name__ == "__main__":
    run_script(main)
