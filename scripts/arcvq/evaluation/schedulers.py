"""Compare schedulers by the steps that they need: Frechet distance against steps => a JSON file and a plot.

python scripts/evaluate.py schedulers runs/ldm
python scripts/evaluate.py schedulers runs/ldm --steps 10,20,50 --guidance_scales 1,1.4 --num_images 5000

Every point is an evaluation as by scripts/evaluate.py, with its options, on the same seeds. A point that was already
measured with the same options is not measured again.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.compute.precision import full_float32
from arcvq.compute.process import prepare_process
from arcvq.evaluation.generation import evaluate_generation
from arcvq.evaluation.networks import PACKAGES
from arcvq.evaluation.options import GENERATION, UNUSED, add_measuring_options, refuse_unused
from arcvq.evaluation.result import write_result
from arcvq.runs.results import load_pipeline
from arcvq.sampling.options import SamplingConfig
from arcvq.sampling.sampler import folder_fingerprint
from pipelines.figures.schedulers import SchedulerPoint, plot_schedulers
from priors.diffusion import SCHEDULERS

COMPARED = ("scheduler", "guidance_scale", "num_inference_steps")

HELP = HelpPage(
    common=(
        *("schedulers", "guidance_scales", "steps", "ddim_steps", "output"),
        *("num_images", "seed", "reference", "extractor", "batch_size", "data.name"),
    ),
    examples=(
        "arcvq evaluate schedulers runs/ldm",
        "arcvq evaluate schedulers runs/ldm --steps 10,20,50 --guidance_scales 1,1.4 --num_images 5000",
    ),
    writes="OUTPUT: schedulers.json, schedulers.png, and a folder per measured point",
    following="arcvq sample runs/ldm --sampling.scheduler NAME --sampling.num_inference_steps N",
)


def make_parser() -> ScriptParser:
    """Make the parser of `arcvq evaluate schedulers`."""
    parser = ScriptParser("Compare schedulers of a latent diffusion pipeline by the steps they need.", page=HELP)
    parser.add_argument("folder", type=str, nargs="?", default="runs/ldm", help="pipeline folder, or its run folder")
    parser.add_argument("--schedulers", type=str, default=",".join(SCHEDULERS), help="with commas")
    parser.add_argument("--guidance_scales", type=str, default="1,1.4,2,4", help="with commas")
    parser.add_argument("--steps", type=str, default="5,10,20,30,50", help="of every scheduler, with commas")
    parser.add_argument("--ddim_steps", type=str, default="100,250", help="more of DDIM, with commas; none: ''")
    parser.add_argument("--output", type=str | None, default=None, help="folder; None: FOLDER/schedulers")
    add_measuring_options(parser)
    return parser


@full_float32()
def main(args: Sequence[str] | None = None) -> None:
    """Measure every missing point, then write schedulers.json and schedulers.png."""
    parser = make_parser()
    config = parser.parse(args)
    unused = (*UNUSED[GENERATION], "save_images", *(f"sampling.{name}" for name in COMPARED))
    refuse_unused(config, parser.get_defaults(), unused, "of this comparison, or is what it compares")
    points = wanted_points(config)
    state = prepare_process()
    pipeline = load_pipeline(config.folder)
    for point in points:  # check all points before the first is measured
        SamplingConfig(**point).apply(pipeline)
    output = Path(config.output or f"{config.folder}/schedulers")
    results = [ensure_measured(parser, config, point, output, args) for point in points]
    if not state.is_main_process:
        return
    metric = next(name for name in results[0]["numbers"] if name.startswith(("fid", "frechet_distance")))
    protocol = {name: value for name, value in results[0]["protocol"].items() if name not in ("sampling", "scheduler")}
    measured = [
        {**point, **{name: value for name, value in result["numbers"].items() if isinstance(value, float)}}
        for point, result in zip(points, results, strict=True)
    ]
    measured_at = sorted({str(result["protocol"]["commit"]) for result in results})
    protocol |= provenance("evaluate schedulers", args, PACKAGES) | {"measured_at": measured_at}
    written = {"protocol": protocol, "points": measured}
    (output / "schedulers.json").write_text(json.dumps(written, indent=2) + "\n")
    drawn = [
        SchedulerPoint(point["scheduler"], point["guidance_scale"], point["num_inference_steps"], point[metric])
        for point in measured
    ]
    plot_schedulers(drawn, metric, output / "schedulers.png")
    print(f"{len(points)} points: {output / 'schedulers.json'}, {output / 'schedulers.png'}")


def wanted_points(config: Namespace) -> list[dict[str, Any]]:
    """List the sampling options of every point. Raises ValueError for options that do not exist."""
    schedulers = list(dict.fromkeys(config.schedulers.split(",")))
    if unknown := [name for name in schedulers if name not in SCHEDULERS]:
        raise ValueError(f"unknown scheduler {unknown[0]!r}; there are {', '.join(SCHEDULERS)}")
    scales = numbers("guidance_scales", config.guidance_scales, float)
    steps, more = numbers("steps", config.steps, int), numbers("ddim_steps", config.ddim_steps, int)
    if not scales or not steps:
        raise ValueError("guidance_scales and steps take one number or more, with commas")
    return [
        dict(zip(COMPARED, (scheduler, scale, count), strict=True))
        for scale in scales
        for scheduler in schedulers
        for count in sorted({*steps, *(more if scheduler == "ddim" else ())})
    ]


def numbers(option: str, text: str, kind: type) -> list[Any]:
    """Parse numbers with commas. Raises ValueError if they are no numbers, or below the option's smallest value."""
    try:
        parsed = [kind(part) for part in text.split(",") if part]
    except ValueError:
        parsed = [-1]
    if not all((1 if kind is int else 0) <= number < inf for number in parsed):
        raise ValueError(f"{option} takes numbers with commas, guidance from 0 and steps from 1 on, got {text!r}")
    return list(dict.fromkeys(parsed))


def ensure_measured(
    parser: ScriptParser, config: Namespace, point: dict[str, Any], output: Path, args: Sequence[str] | None
) -> dict[str, Any]:
    """Return a point's result, and measure it unless its JSON is there; empty except on the main process."""
    folder = output / "-".join(str(value) for value in point.values())
    file = folder / "generation.json"
    options = config.clone()
    options.sampling = replace(config.sampling, **point)
    settings = parser.settings(options)
    if file.is_file():
        result = json.loads(file.read_text())
        stored = (result["settings"], result["protocol"]["pipeline"])
        if stored == (settings, folder_fingerprint(config.folder)):
            return result
    PartialState().wait_for_everyone()  # all look before the main process writes
    measured = evaluate_generation(config.folder, options, folder)
    if measured is None:
        PartialState().wait_for_everyone()
        return {}
    protocol = {"task": GENERATION, "folder": config.folder, **measured.protocol}
    write_result(file, protocol | provenance("evaluate schedulers", args, PACKAGES), settings, measured.numbers)
    measured.chunks.remove()
    PartialState().wait_for_everyone()  # all wait until this point is written
    return json.loads(file.read_text())
