"""How many steps which scheduler needs: Frechet distance against steps => a JSON file and a plot.

python scripts/evaluate.py schedulers runs/ldm
python scripts/evaluate.py schedulers runs/ldm --steps 10,20,50 --guidance_scales 1,1.4 --num_images 5000

Every point is a measurement of scripts/evaluate.py on the same seeds, whose options it takes; a point that was measured
once with the same options is not measured again.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.compute.process import prepare_process
from arcvq.evaluation.command import GENERATION, PACKAGES, UNUSED, add_measuring_options, refuse_unused, write
from arcvq.evaluation.generation import evaluate_generation
from arcvq.runs.results import load_pipeline
from arcvq.sampling.options import SamplingConfig
from arcvq.sampling.sampler import folder_fingerprint
from pipelines.figures.schedulers import SchedulerPoint, plot_schedulers
from priors.diffusion import SCHEDULERS

COMPARED = ("scheduler", "guidance_scale", "num_inference_steps")


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Compare schedulers of a latent diffusion pipeline by the steps they need.")
    parser.add_argument("folder", type=str, nargs="?", default="runs/ldm", help="pipeline folder, or its run folder")
    parser.add_argument("--schedulers", type=str, default=",".join(SCHEDULERS), help="with commas")
    parser.add_argument("--guidance_scales", type=str, default="1,1.4,2,4", help="with commas")
    parser.add_argument("--steps", type=str, default="5,10,20,30,50", help="of every scheduler, with commas")
    parser.add_argument("--ddim_steps", type=str, default="100,250", help="more of DDIM, with commas; none: ''")
    parser.add_argument("--output", type=str | None, default=None, help="folder; None: FOLDER/schedulers")
    add_measuring_options(parser)
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Measures every point that is missing, then writes schedulers.json and schedulers.png."""
    parser = make_parser()
    config = parser.parse(args)
    unused = (*UNUSED[GENERATION], "save_images", *(f"sampling.{name}" for name in COMPARED))
    refuse_unused(config, parser.get_defaults(), unused, "of this comparison, or is what it compares")
    points = wanted_points(config)
    state = prepare_process()
    pipeline = load_pipeline(config.folder)
    for point in points:  # all of them, before the first is measured
        SamplingConfig(**point).apply(pipeline)
    output = Path(config.output or f"{config.folder}/schedulers")
    results = [measured(parser, config, point, output, args) for point in points]
    if not state.is_main_process:
        return
    metric = next(name for name in results[0]["numbers"] if name.startswith(("fid", "frechet_distance")))
    protocol = {name: value for name, value in results[0]["protocol"].items() if name not in ("sampling", "scheduler")}
    found = [
        {**point, **{name: value for name, value in result["numbers"].items() if isinstance(value, float)}}
        for point, result in zip(points, results, strict=True)
    ]
    measured_at = sorted({str(result["protocol"]["commit"]) for result in results})
    protocol |= provenance("evaluate schedulers", args, PACKAGES) | {"measured_at": measured_at}
    written = {"protocol": protocol, "points": found}
    (output / "schedulers.json").write_text(json.dumps(written, indent=2) + "\n")
    drawn = [
        SchedulerPoint(point["scheduler"], point["guidance_scale"], point["num_inference_steps"], point[metric])
        for point in found
    ]
    plot_schedulers(drawn, metric, output / "schedulers.png")
    print(f"{len(points)} points: {output / 'schedulers.json'}, {output / 'schedulers.png'}")


def wanted_points(config: Namespace) -> list[dict[str, Any]]:
    """The sampling options of every point. Raises ValueError for those that do not exist."""
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
    """The numbers of an option. Raises ValueError where they are none, or below what such a number can be."""
    try:
        found = [kind(part) for part in text.split(",") if part]
    except ValueError:
        found = [-1]
    if not all((1 if kind is int else 0) <= number < inf for number in found):
        raise ValueError(f"{option} takes numbers with commas, guidance from 0 and steps from 1 on, got {text!r}")
    return list(dict.fromkeys(found))


def measured(
    parser: ScriptParser, config: Namespace, point: dict[str, Any], output: Path, args: Sequence[str] | None
) -> dict[str, Any]:
    """What evaluate.py's JSON says of a point; measured where it is not there. Empty on all but the main process."""
    folder = output / "-".join(str(value) for value in point.values())
    file = folder / "generation.json"
    options = config.clone()
    options.sampling = replace(config.sampling, **point)
    settings = parser.settings(options)
    if file.is_file():
        result = json.loads(file.read_text())
        there = (result["settings"], result["protocol"]["pipeline"])
        if there == (settings, folder_fingerprint(config.folder)):
            return result
    PartialState().wait_for_everyone()  # all have looked before the main process writes
    found = evaluate_generation(config.folder, options, folder)
    if found is None:
        PartialState().wait_for_everyone()
        return {}
    protocol = {"task": GENERATION, "folder": config.folder, **found.protocol}
    write(file, protocol | provenance("evaluate schedulers", args, PACKAGES), settings, found.numbers)
    found.chunks.remove()
    PartialState().wait_for_everyone()  # nobody looks for the next point before this one is written
    return json.loads(file.read_text())
