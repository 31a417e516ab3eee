"""The verbs of the command line: `arcvq VERB ...`, `python -m arcvq VERB ...`, `python scripts/VERB.py ...`.

Nothing heavy is imported before the verb is known, so that `arcvq --help` answers at once.
"""

import difflib
import gc
import importlib
import importlib.metadata
import os
import sys
from dataclasses import dataclass, field

from arcvq.compute.barrier import spin_briefly


@dataclass(frozen=True)
class Verb:
    """A command.

    Attributes:
        module: its `main` runs the command.
        summary: what it reads => what it writes.
        is_training: whether the module is a training, which --dry_run plans.
        others: modules whose `main` runs `arcvq VERB NAME ...`, by name.
        words: where the module takes one of several first words: the words, each with its summary.
    """

    module: str
    summary: str
    is_training: bool = False
    others: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)


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
    "export": Verb("arcvq.export.command", "a run => a folder to give away: weights, a model card, examples"),
    "convert": Verb("arcvq.conversion.convert", "weights of public code => a tokenizer folder"),
    "codebook": Verb(
        "arcvq.conversion.codebook",
        "features of images => a frozen codebook; a tokenizer => fewer codes",
        words={"features": "images => a frozen codebook for quantizer lc", "reduce": "a tokenizer => fewer codes"},
    ),
    "reproduce": Verb("arcvq.paper.command", "the paper's tables and figures, each row trained and measured"),
    "queue": Verb("arcvq.queue.command", "commands of days at low priority, each resumed until it is done"),
    "benchmark": Verb(
        "arcvq.benchmarks.command",
        "speed and memory next to named peers => a table and a JSON file",
        others={
            "gpu": "arcvq.benchmarks.gpu.command",
            "loader": "arcvq.benchmarks.loader",
            "memory": "arcvq.benchmarks.memory",
            "metrics": "arcvq.benchmarks.metrics",
            "threads": "arcvq.benchmarks.threads",
        },
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
    owns_process = args is None
    args = list(sys.argv[1:] if args is None else args)
    verb = VERBS[name]
    module = verb.module
    if args and args[0] in (*verb.others, *verb.words):
        sys.argv[0] += f" {args[0]}"  # the name in the help
    if args and args[0] in verb.others:
        module = verb.others[args.pop(0)]
    if verb.words and args[:1] in (["--help"], ["-h"]):
        print(help_on_words(name))
        return
    if verb.words and not args:
        print(f"error: say {' or '.join(verb.words)} first; each has --help", file=sys.stderr)
        sys.exit(2)
    sys.argv[1:] = args
    spin_briefly()
    gc.disable()  # imports make millions of objects and no garbage; looking for it takes a fifth of their time
    from arcvq.cli.script import run_script  # imports torch

    main = importlib.import_module(module).main
    if verb.is_training:
        from arcvq.planning.train_or_plan import train_or_plan

        main = train_or_plan(sys.modules[module])
    gc.enable()
    try:
        run_script(main)
    except SystemExit as end:
        if owns_process and {"-h", "--help"} & set(args) and end.code in (0, None):
            sys.stdout.flush()
            os._exit(0)  # ending a process that has imported torch takes Python a second
        raise


def main() -> None:
    """Run `arcvq VERB ...`; without a verb, list them."""
    name, *args = sys.argv[1:] or ["--help"]
    name = name.replace("_", "-")
    if name in ("--help", "-h", "help"):
        try:
            print(overview(), flush=True)
        except BrokenPipeError:  # the reader, as `head`, has enough; closing stdout at exit would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif name in VERBS:
        sys.argv = [f"arcvq {name}", *args]
        run_verb(name)
    elif name == "--version":
        print(f"arcvq {importlib.metadata.version('arcvq')}")
    else:
        close = difflib.get_close_matches(name, VERBS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}"
        print(f"error: unknown verb {name!r:.80}; {meant}", file=sys.stderr)
        sys.exit(2)


def help_on_words(name: str) -> str:
    """Write the help of a verb that takes one of several first words."""
    words = VERBS[name].words
    width = max(map(len, words))
    lines = [f"  arcvq {name} {word:<{width}}  {summary}" for word, summary in words.items()]
    usage = f"usage: arcvq {name} {'|'.join(words)} [options]"
    return "\n".join([usage, "", *lines, "", f"`arcvq {name} {next(iter(words))} --help` shows the options."])


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
