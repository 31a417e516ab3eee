"""The options of a table's trainings, which all rows share, and how a trained row is measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.cli.configs import CONFIGS
from arcvq.evaluation import command as evaluate
from arcvq.paper.budget import Budget
from arcvq.paper.tables import Row
from arcvq.paper.training_cost import TrainingCost
from arcvq.paper.variants import VARIANTS, own_options
from arcvq.training import tokenizer as train_tokenizer
from pipelines.figures.grids import read_metrics
from tokenizer.losses.lpips import PerceptualNet

# Steps after which a long run is evaluated and saved at the latest: minutes on a CPU, which is what a kill costs.
_LONGEST_INTERVAL = 480
# Metrics of a run's log that are no numbers of the held-out split, and belong to the curves.
_OF_THE_CODEBOOK = ("share_on_ball",)
# Options of all tokenizers of a data set, which override their configs: short trainings, and the paper's.
SHORT = {"optim.batch_size": 128, "optim.lr": 1e-3, "optim.schedule": "cooldown"}
FULL = {"optim.batch_size": 1024, "optim.lr": 3e-4, "optim.schedule": "constant"}
# Options of short trainings of the priors: on two cores the UNet of the configs takes seconds for a step.
SHORT_PRIORS = {
    "ldm": {"unet.channels": 64, "optim.batch_size": 64, "optim.lr": 5e-4, "optim.warmup_steps": 50},
    "pixelcnn": {"optim.batch_size": 64, "optim.lr": 1e-3},
}
FULL_STEPS = {"mnist": 29_000, "cifar10": 24_000}  # 500 epochs of 58 and of 48 steps


@dataclass(frozen=True)
class MeasureConfig:
    """How tokenizers, and samples of priors, are measured; see `arcvq evaluate`.

    Args:
        protocol: protocol of reconstructions; official_jpeg is that of the paper's code.
        extractor: network of the Frechet distance, which is FID with inception alone; None: no Frechet distance.
        resize: side of the extractor's images, in pixels.
        lpips: network of LPIPS; None: no LPIPS.
        dtype: type of the networks that measure.
        num_images: number of samples of a prior.
        num_inference_steps: denoising steps of the latent diffusion; None: the pipeline's own number.
    """

    protocol: Literal["rfid", "official_jpeg"] = "official_jpeg"
    extractor: str | None = "inception"
    resize: int | None = None
    lpips: PerceptualNet | None = "vgg"
    dtype: Literal["float64", "float32"] = "float64"
    num_images: int = 50_000
    num_inference_steps: int | None = None


@dataclass(frozen=True)
class RowNumbers:
    """The measured numbers of a row for one seed.

    Attributes:
        numbers: metrics by their names in a result of `arcvq evaluate`.
        commit: commit of the measurement; None where nothing was measured.
        history: metrics during the tokenizer's training, see `history`.
        samples: a picture of samples; None in a row without a prior.
        trainings: what the trainings have cost, by part: tokenizer, and ldm or pixelcnn.
    """

    numbers: dict[str, float]
    commit: str | None
    history: Sequence[dict[str, float]] = ()
    samples: Path | None = None
    trainings: dict[str, TrainingCost] = field(default_factory=dict)


def config_file(data: str, name: str) -> Path:
    """Return the YAML of a prior, or of a row's tokenizer."""
    return CONFIGS / data / f"{VARIANTS[name].config if name in VARIANTS else name}.yaml"


def common_options(config: Namespace, budget: Budget) -> dict[str, Any]:
    """Return the options of all tokenizers of the table, which override their configs."""
    if config.data not in FULL_STEPS:
        return {}
    options = (FULL if budget.is_full else SHORT) | {"run.mixed_precision": config.mixed_precision}
    return options | ({"schedule_length": FULL_STEPS[config.data]} if config.scale_schedules else {})


def prior_options(config: Namespace, prior: str) -> dict[str, Any]:
    """Return the options of all priors of a kind, which override their configs."""
    steps = Budget.parse(config.prior_budget).steps
    precision = {"run.mixed_precision": config.mixed_precision} if config.data in FULL_STEPS else {}
    return precision if steps is None else SHORT_PRIORS[prior] | precision | {"optim.max_steps": steps}


def tokenizer_arguments(config: Namespace, budget: Budget, name: str) -> list[str]:
    """Return the command line of a tokenizer's training without its length, seed and run folder."""
    options = dict(common_options(config, budget))
    options |= data_options(config) | own_options(name)
    options |= {f"weights.{weights}": file for weights, file in asdict(config.weights).items() if file is not None}
    options.pop("weights.inception", None)
    return [f"--config={config_file(config.data, name)}", *as_arguments(options)]


def data_options(config: Namespace) -> dict[str, Any]:
    """Return the options of all trainings and measurements that say which images they take."""
    options = {} if config.images is None else {"data.name": config.images}
    return options | ({"data.hold_out": config.hold_out} if config.hold_out else {})


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Format options by dotted name as words of a command line."""
    return [f"--{name}={value}" for name, value in options.items()]


def run_options(bench: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the options of a run's folder and seed."""
    return {"run.output_dir": bench, "run.name": name, "run.seed": seed}


def save_intervals(steps: int) -> dict[str, Any]:
    """Return the intervals by which a run of `steps` steps is evaluated and saved: five times, or more often."""
    interval = min(max(1, -(-steps // 5)), _LONGEST_INTERVAL)
    return {"run.sample_every": interval, "run.checkpoint_every": interval}


def task_of(row: Row) -> str:
    """Return the task of `arcvq evaluate` for a row."""
    return "reconstruction" if row.prior is None else "generation"


def ensure_measured(config: Namespace, row: Row, run: Path) -> RowNumbers:
    """Return the numbers of a run; measure it unless a result with the same options is there."""
    task = task_of(row)
    images = train_tokenizer.make_parser().parse([f"--config={config_file(config.data, row.config)}"]).data
    options = {f"data.{name}": value for name, value in asdict(images).items() if value is not None}
    options |= data_options(config)
    arguments = [*as_arguments(options), *measure_arguments(config, task)]
    if row.prior == "ldm" and config.measure.num_inference_steps is not None:
        arguments.append(f"--sampling.num_inference_steps={config.measure.num_inference_steps}")
    protocol = config.measure.protocol if task == "reconstruction" else None
    named = "-".join(part for part in (task, protocol, config.measure.extractor) if part)
    file, asked = run / "evaluation" / f"{named}.json", evaluate.make_parser()
    settings = asked.settings(asked.parse([task, str(run), *arguments]))
    if not file.is_file() or json.loads(file.read_text())["settings"] != settings:
        evaluate.main([task, str(run), *arguments])
    PartialState().wait_for_everyone()
    found = json.loads(file.read_text())
    return RowNumbers(found["numbers"], found["protocol"]["commit"])


def history(run: Path) -> list[dict[str, float]]:
    """Return the metrics during a tokenizer's training: `step`, and numbers by name, as far as its log goes.

    The numbers are those of the held-out split, and the share of codes on the ball, of which the log has many more: of
    these the last up to each evaluation, and the last of all, each at its own step.
    """
    log, of_split = run / "metrics.jsonl", "test_"
    records = read_metrics(log) if log.is_file() else []
    entries: dict[int, dict[str, float]] = {}
    waiting: dict[int, dict[str, float]] = {}
    for record in records:
        step = record["step"]
        if found := {name: record[name] for name in _OF_THE_CODEBOOK if name in record}:
            waiting = {step: found}
        if found := {name.removeprefix(of_split): of for name, of in record.items() if name.startswith(of_split)}:
            for at, numbers in (*waiting.items(), (step, found)):
                entries.setdefault(at, {}).update(numbers)
            waiting = {}
    for at, numbers in waiting.items():
        entries.setdefault(at, {}).update(numbers)
    return [{"step": step} | entries[step] for step in sorted(entries)]


def measure_arguments(config: Namespace, task: str) -> list[str]:
    """Return the options of `arcvq evaluate` that all rows share."""
    measure = config.measure
    options = {"cache_dir": f"{config.output_dir}/cache", "dtype": measure.dtype}
    options |= {"extractor": measure.extractor, "resize": measure.resize}
    if task == "reconstruction":
        options |= {"protocol": measure.protocol, "lpips": measure.lpips}
    else:
        options |= {"num_images": measure.num_images}
    options |= {f"weights.{name}": value for name, value in asdict(config.weights).items()}
    return as_arguments({name: value for name, value in options.items() if value is not None})


def training_facts(config: Namespace, budget: Budget, steps: int | None) -> dict[str, Any]:
    """Return the options that all trainings share, for the protocol."""
    return common_options(config, budget) | ({} if steps is None else {"optim.max_steps": steps})
