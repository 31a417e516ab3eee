"""Every quantizer trains on the digits in bf16: failures, waits by line, time and launches of a step."""

from functools import partial
from typing import Any

from arcvq.benchmarks.gpu.bench import Bench, Figures
from arcvq.benchmarks.gpu.watched_steps import WatchedSteps
from arcvq.cli.configs import CONFIGS
from arcvq.cli.safe_yaml import read_yaml
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.quantizers import QUANTIZERS

# Images of a step.
BATCH = 64


def figures(bench: Bench) -> Figures:
    """Train each quantizer for some steps, with the quantizer's options for MNIST.

    Nothing is logged, drawn or saved before the last step, so that every wait is one too many.
    """
    for name in QUANTIZERS:
        yield name, partial(watched_training, bench, name)


def watched_training(bench: Bench, name: str) -> dict[str, Any]:
    """Train a quantizer, and return what was seen of its steps."""
    steps, never = bench.sizes.digits_steps, 10 * bench.sizes.digits_steps
    options = {
        "data.name": "digits",
        "optim.max_steps": steps,
        "optim.batch_size": BATCH,
        "run.mixed_precision": "bf16",
        "run.output_dir": bench.folder,
        "run.name": name,
        "run.log_every": never,
        "run.sample_every": never,
        "run.checkpoint_every": never,
    }
    words = [f"--{option}={value}" for option, value in options.items()]
    with WatchedSteps(steps, bench.device) as watched:
        train_tokenizer.main([f"--config={_config_of(name)}", *words, *bench.sizes.model])
    return watched.result()


def _config_of(quantizer: str) -> str:
    """Return the configs' file that trains a quantizer on MNIST as published."""
    files = sorted((CONFIGS / "mnist").glob("*.yaml"))
    return str(next(file for file in files if read_yaml(file).get("model", {}).get("quantizer") == quantizer))
