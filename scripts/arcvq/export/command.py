"""Export a trained run as a folder to give away: weights, a model card with measured numbers, examples.

python scripts/export.py runs/mnist-arcvq --output models/mnist-arcvq --evaluate "reconstruction --lpips alex"
python scripts/export.py runs/mnist-ldm --output models/mnist-ldm \
    --evaluate "generation --extractor alexnet --resize 64 --num_images 1000" "reconstruction"

All numbers are measured on the folder that is written, by `arcvq evaluate`. An evaluation that was interrupted goes on
where it was when the command is started again. The folder appears when it is complete.
"""

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import commit, machine
from arcvq.compute.atomic_files import atomic_folder
from arcvq.compute.process import prepare_process
from arcvq.evaluation.options import GENERATION
from arcvq.export.card import render_card
from arcvq.export.examples import write_reconstructions, write_samples
from arcvq.export.known_data import data_facts, is_known
from arcvq.export.measurements import Measurement, parse_measurements
from arcvq.export.public_text import public, public_data_name, public_folder
from arcvq.export.training_facts import finished_settings, public_settings, training_facts
from arcvq.export.weights import copy_model, weights_hashes
from arcvq.runs.results import check_images, find_pipeline, find_tokenizer, load_pipeline, load_tokenizer
from tokenizer.data import DataConfig
from tokenizer.data.sources import NAMED
from tokenizer.loading.result_folders import RESULTS, class_in

VERBS = {
    "VQTokenizer": "train-tokenizer",
    "ArcVQLDMPipeline": "train-ldm",
    "ArcVQPixelCNNPipeline": "train-pixelcnn",
}

HELP = HelpPage(
    examples=(
        "arcvq export runs/mnist-arcvq --output models/mnist-arcvq",
        "arcvq export runs/ldm --output models/digits-ldm "
        '--evaluate "generation --num_images 1000" "reconstruction --lpips alex"',
    ),
    writes="OUTPUT: weights, config.yaml, README.md (the model card), card.json, examples.png, examples/",
    following="arcvq sample OUTPUT, arcvq evaluate reconstruction OUTPUT, or add the folder to a repository",
)


def make_parser() -> ScriptParser:
    """Make the parser of `arcvq export`."""
    parser = ScriptParser("Export a finished run as a folder to give away, with a model card.", page=HELP)
    parser.add_argument("run", type=str, help="run folder of a tokenizer or of a prior")
    parser.add_argument("--output", type=str, required=True, help="folder to write; must not hold anything yet")
    parser.add_argument(
        "--dtype",
        type=Literal["float16", "float32"],
        default="float16",
        help="of the stored weights, the quantizer's excepted; they compute in float32 when they are loaded",
    )
    parser.add_argument(
        "--evaluate",
        type=str,
        nargs="+",
        default=None,
        help="what to measure, each in quotes: reconstruction or generation, and options of arcvq evaluate; None: "
        "reconstruction of a tokenizer, generation of a pipeline",
    )
    parser.add_argument("--data", type=str | None, default=None, help="the run's data set, if it lies elsewhere now")
    parser.add_argument(
        "--licence", type=str, default="apache-2.0", help="licence of the weights and the card, by its id on the Hub"
    )
    parser.add_argument("--data_id", type=str | None, default=None, help="id of the data set on the Hub")
    parser.add_argument("--data_licence", type=str | None, default=None, help="licence of the images")
    parser.add_argument(
        "--trained_on",
        type=str | None,
        default=None,
        help="commit and machine of the training, where the run folder is too old to say it in starts.jsonl",
    )
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Check all that is given, write the weights, measure them, and write the card."""
    config = make_parser().parse(args)
    run, output = Path(config.run), Path(config.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{config.output!r} exists and is not an empty folder; name another")
    if not output.name:
        raise ValueError(f"--output {config.output!r} is no name of a folder; name one, as models/NAME")
    if (run / "card.json").is_file():
        raise ValueError(f"{config.run!r} is an exported folder, as it has a card; copy it, or name the run it is of")
    kind, model = find_result(run)
    settings = finished_settings(run)
    training = training_facts(run, settings, config.trained_on)
    data = data_of(settings, config.data)
    measurements = parse_measurements(config.evaluate, kind, data)
    if prepare_process().num_processes > 1:
        raise ValueError("arcvq export takes one process; start it without accelerate launch")
    line = described_data(run)
    name = public_data_name(data.name)
    if name in NAMED and not is_known(data.name, name, line, data.hold_out):
        print(f"note: the images in {data.name!r} are not those of {name}, so the card calls them own-{name}")
        name = f"own-{name}"  # under the other name its commands would read other images
    facts = data_facts(name, config.data_id, config.data_licence)
    print(f"data: {facts.name}, on the Hub: {facts.hub_id}, licence: {facts.licence or 'not known'}")
    print(f"weights and card: licence {config.licence}; --licence names another")
    folder = public_folder(output)
    card: dict[str, Any] = {"name": output.name, "kind": kind, "folder": folder}
    card["class"] = class_in(model / RESULTS[kind])
    card["licence"] = config.licence
    card["data"] = asdict(facts) | {"line": line}
    command = ["arcvq", VERBS[card["class"]], "--config", f"{folder}/config.yaml"]
    card["training"] = {"command": shlex.join(command)} | training
    with atomic_folder(output) as unfinished:
        card["weights"] = copy_model(model, unfinished, config.dtype)
        card["weights"]["sha256"] = weights_hashes(unfinished)
        card |= write_examples(kind, unfinished, data, training["inputs"].get("data"))
        places = [run / "evaluation" / output.name / str(index) for index in range(len(measurements))]
        card["evaluations"] = [
            measured(measurement, unfinished, place, folder, facts.name)
            for measurement, place in zip(measurements, places, strict=True)
        ]
        # Only now: an evaluation would read in it that the folder was trained on data of another name.
        shown = public_settings(settings, facts.name, folder)
        (unfinished / "config.yaml").write_text(yaml.safe_dump(public(shown), sort_keys=False), encoding="utf-8")
        if kind == "pipeline":
            tasks = [measurement.task for measurement in measurements]
            shutil.copyfile(places[tasks.index(GENERATION)] / "generation.png", unfinished / "examples.png")
        card["exported"] = {"commit": commit(), **machine()}
        card = public(card)
        (unfinished / "card.json").write_text(as_json(card), encoding="utf-8")
        (unfinished / "README.md").write_text(render_card(card), encoding="utf-8")
        size = sum(file.stat().st_size for file in unfinished.rglob("*"))
    print(f"{kind} with its card, {size / 1e6:.2f} MB: {output}")


def as_json(card: dict[str, Any]) -> str:
    """Write nested values as JSON, with each list of numbers, as a row of codes, in a line."""
    text = json.dumps(card, indent=1)
    return re.sub(r"\[[-\d.,\s]+\]", lambda numbers: "[" + " ".join(numbers[0][1:-1].split()) + "]", text) + "\n"


def described_data(run: Path) -> str:
    """Read the line that describes the images of a run. Raises ValueError where there is none."""
    file = run / "data.txt"
    if not file.is_file():
        raise ValueError(f"{file} is not there, which a training writes; start the training again to have it written")
    return file.read_text(encoding="utf-8").strip()


def find_result(run: Path) -> tuple[str, Path]:
    """Find the result of a run: its kind, tokenizer or pipeline, and its folder.

    Raises:
        ValueError: there is none.
    """
    is_prior = (run / "pipeline").is_dir()
    return ("pipeline", find_pipeline(str(run))) if is_prior else ("tokenizer", find_tokenizer(str(run)))


def data_of(settings: dict[str, Any], name: str | None) -> DataConfig:
    """Return a run's data set as evaluations read it, under another name or in another folder if one is given."""
    known = {field.name for field in fields(DataConfig)}
    given = {option: value for option, value in settings["data"].items() if option in known}
    return DataConfig(**given | {"on_bad_image": "error"} | ({} if name is None else {"name": name}))


def write_examples(kind: str, folder: Path, data: DataConfig, fingerprint: str | None) -> dict[str, Any]:
    """Load the written model, write its examples, and describe both.

    Args:
        kind: tokenizer or pipeline.
        folder: the written folder.
        data: the run's data set.
        fingerprint: of the images that the run was trained on.
    """
    tokenizer = load_tokenizer(str(folder))
    splits = announced_splits(data)
    check_images(tokenizer, splits.held_out)
    if splits.train.fingerprint() != fingerprint:
        print(f"note: the files of {data.name!r} are not those that the run was trained on; the numbers are of these")
    model = {"tokenizer": {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}}
    model["tokenizer_parameters"] = sum(weight.numel() for weight in tokenizer.parameters())
    model |= {"code_shape": list(tokenizer.code_shape) if tokenizer.has_codes else None}
    model |= {"latent_shape": list(tokenizer.latent_shape)}
    if kind == "tokenizer":
        return {"model": model, "examples": write_reconstructions(tokenizer, splits.held_out, folder)}
    pipeline = load_pipeline(str(folder))
    prior = getattr(pipeline, pipeline._prior)
    model["prior_parameters"] = sum(weight.numel() for weight in prior.parameters())
    model["classes"] = list(pipeline.class_names.values())
    return {"model": model, "examples": write_samples(pipeline, folder)}


def measured(measurement: Measurement, folder: Path, output: Path, public_name: str, data_name: str) -> dict[str, Any]:
    """Measure the written folder, and describe the measurement as others can repeat it."""
    result = measurement.measure(folder, output)
    result["protocol"] |= {"folder": public_name, "data": data_name}
    result["protocol"]["command"] = measurement.command(public_name, data_name)
    return result
