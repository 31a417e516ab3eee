"""The verb of a training: it trains, or with --dry_run plans the training."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from arcvq.cli.parser import ScriptParser

if TYPE_CHECKING:
    from arcvq.planning.dry_run import DryReport


def train_or_plan(training: ModuleType) -> Callable[[Sequence[str] | None], "DryReport | None"]:
    """Make the `main` of a training's verb, which trains, or with --dry_run plans the training.

    Args:
        training: a module with `make_parser`, `check`, `set_up` and `train`, as arcvq.training.tokenizer.
    """

    def main(args: Sequence[str] | None = None) -> "DryReport | None":
        parser = make_parser(training)
        config = parser.parse(args)
        processes = config.pop("dry_run")
        settings = parser.settings(config)
        if processes is None:
            training.train(config, settings)
            return None
        from arcvq.planning.dry_run import dry_run  # which a training does without

        return dry_run(training, config, settings, processes)

    return main


def make_parser(training: ModuleType) -> ScriptParser:
    """Declare the options of a training, and --dry_run."""
    parser = training.make_parser()
    parser.add_argument(
        "--dry_run",
        type=int | None,
        nargs="?",
        const=0,
        default=None,
        help="only print the parameters, memory and steps; N: for so many processes, else the launcher's",
    )
    return parser
