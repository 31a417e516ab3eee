"""Check the command of a job by its verb's own parser, before anything starts."""

import contextlib
import difflib
import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from arcvq.planning.train_or_plan import make_parser
from arcvq.queue.queue_file import Job
from arcvq.verbs import VERBS


@dataclass(frozen=True)
class Work:
    """Inputs and outputs of a command of a queue.

    Attributes:
        run: the run folder of a training; None for other verbs.
        steps: its steps.
    """

    run: Path | None = None
    steps: int | None = None


def check_command(job: Job) -> Work:
    """Parse a job's command as its verb does.

    Raises:
        ValueError: no such verb, one that ends by itself within minutes, or options that the verb refuses.
    """
    name = job.words[0].replace("_", "-")
    verbs = [verb for verb in VERBS if verb != "queue"]
    if name not in verbs:
        close = difflib.get_close_matches(name, verbs, n=1) or verbs
        raise ValueError(
            f"job {job.name}: unknown verb {job.words[0]!r:.80}; a command begins with a verb of arcvq, without a "
            f"launcher or variables before it; take {', '.join(close)}"
        )
    verb, args = VERBS[name], list(job.words[1:])
    module = importlib.import_module(verb.others[args.pop(0)] if args and args[0] in verb.others else verb.module)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            return _parsed(module, verb.is_training, args)
    except SystemExit as end:
        reason = (
            said.getvalue().strip().removeprefix("error: ")
            if end.code
            else "its command only prints; leave out --help or --print_config"
        )
        raise ValueError(f"job {job.name}: {reason}") from end
    except ValueError as error:
        raise ValueError(f"job {job.name}: {error}") from error


def check_folders(runs: Sequence[tuple[str, str | None]]) -> None:
    """Raise ValueError if two jobs, by name, train in one run folder."""
    owners: dict[Path, str] = {}
    for name, run in runs:
        if run is not None and (owner := owners.setdefault(Path(run).resolve(), name)) != name:
            raise ValueError(f"job {name}: it trains in {run}, as job {owner} does; give it another --run.name")


def _parsed(module: ModuleType, is_training: bool, args: list[str]) -> Work:
    """Parse and check options. Raises ValueError or SystemExit if the verb refuses them."""
    if is_training:
        config = make_parser(module).parse(args)
        if config.pop("dry_run") is not None:
            raise ValueError("--dry_run only prints; leave it out")
        module.check(config)
        return Work(Path(config.run.output_dir, config.run.name), config.optim.max_steps)
    if not hasattr(module, "make_parser"):
        raise ValueError("its command ends within minutes and needs no queue; start it by itself")
    module.make_parser().parse(args)
    return Work()
