"""The verbs of the command line: `arcvq VERB ...`, `python -m arcvq VERB ...`, `python scripts/VERB.py ...`.

Nothing heavy is imported before the verb is known, so that `arcvq --help` answers at once.
"""

import importlib
import sys
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        module: its `main` runs the command.
        summary: what it reads => what it writes.
        is_training: whether the module is a training, which --dry_run plans.
        others: modules whose `main` runs `arcvq VERB NAME ...`, by name.
    """

    module: str
    summary: str
    is_training: bool = False
    others: dict[str, str] = field(default_factory=dict)


VERBS = {
    "quickstart": Verb("arcvq.quickstart", "embedded digits => both stages and a report, in runs/quickstart"),
    "train-tokenizer": Verb("arcvq.training.tokenizer", "images => runs/<name>/tokenizer", is_training=True),
    "train-ldm": Verb("arcvq.training.ldm", "a tokenizer's latents => runs/<name>/pipeline", is_training=True),
    "train-pixelcnn": Verb("arcvq.training.pixelcnn", "a tokenizer's codes => runs/<name>/pipeline", is_training=True),
    "sample": Verb("arcvq.sampling.command", "a pipeline => images as PNG files, npz or tar shards"),
    "evaluate": Verb(
        "arcvq.evaluation.command",
        "a tokenizer, a pipeline or images => named numbers in a JSON file",
        others={"compare": "arcvq.evaluation.compare_images", "schedulers": "arcvq.evaluation.schedulers"},
    ),
    "convert": Verb("arcvq.conversion.convert", "weights of public code => a tokenizer folder"),
    "codebook": Verb(
        "arcvq.conversion.codebook", "features of images => a frozen codebook; a tokenizer => fewer codes"
    ),
    "reproduce": Verb("arcvq.paper.command", "the paper's tables and figures, each row trained and measured"),
    "benchmark": Verb(
        "arcvq.benchmarks.command",
        "speed and memory beside named peers => a table and a JSON file",
        others={"memory": "arcvq.benchmarks.memory", "metrics": "arcvq.benchmarks.metrics"},
    ),
    "faults": Verb(
        "arcvq.faults.command", "trainings killed, starved and broken => a JSON file of what became of them"
    ),
}


def run_verb(name: str, args: list[str] | None = None) -> None:
    """Run a verb; an error of the user's ends the process with one line and status 2.

    Args:
        name: one of VERBS.
        args: what follows the verb; None: the process's own arguments.
    """
    args = list(sys.argv[1:] if args is None else args)
    verb = VERBS[name]
    module = verb.module
    if args and args[0] in verb.others:
        module = verb.others[args.pop(0)]
    sys.argv[1:] = args
    from arcvq.cli.script import run_script  # imports torch

    imported = importlib.import_module(module)
    if verb.is_training:
        from arcvq.planning.train_or_plan import train_or_plan

        run_script(train_or_plan(imported))
    else:
        run_script(imported.main)


def main() -> None:
    """Run `arcvq VERB ...`; without a verb, list them."""
    name, *args = sys.argv[1:] or ["--help"]
    name = name.replace("_", "-")
    if name in ("--help", "-h", "help"):
        print(overview())
    elif name in VERBS:
        sys.argv = [f"arcvq {name}", *args]
        run_verb(name)
    else:
        print(f"error: unknown verb {name!r:.80}; there are {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)


def overview() -> str:
    """The text of `arcvq --help`."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: arcvq VERB [options]",
            "",
            "Train, sample and measure VQ image tokenizers and the priors on top of them.",
            "",
            *lines,
            "",
            "`arcvq VERB --help` shows a verb's options. On several GPUs: accelerate launch -m arcvq VERB ...",
        ]
    )
