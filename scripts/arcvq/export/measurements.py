"""Measure an exported folder with `arcvq evaluate`: words of its command line => numbers with their protocol."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from arcvq.evaluation import command as evaluate
from arcvq.evaluation.networks import refuse_skipping
from arcvq.evaluation.options import GENERATION, RECONSTRUCTION, UNUSED, refuse_unused
from arcvq.export.public_text import public
from tokenizer.data import DataConfig

# What each kind of result is measured on; the first one by default, and always.
TASKS = {"tokenizer": (RECONSTRUCTION,), "pipeline": (GENERATION, RECONSTRUCTION)}
# Options of a data set that only a training heeds.
_OF_TRAINING = ("num_workers", "memory_limit_gib", "crop", "flip", "shuffle_buffer", "on_bad_image")


@dataclass(frozen=True)
class Measurement:
    """One call of `arcvq evaluate`.

    Args:
        task: reconstruction or generation.
        words: the options that follow the task and the folder, as given.
        data: the data set's options, which come before them.
        config: the parsed options, for the names of the results.
    """

    task: str
    words: Sequence[str]
    data: dict[str, Any]
    config: Namespace

    def measure(self, folder: Path, output: Path) -> dict[str, Any]:
        """Measure the folder, and return the protocol and the numbers that were written into `output`."""
        evaluate.main([self.task, str(folder), *_data_words(self.data), *self.words, f"--output={output}"])
        written = json.loads((output / f"{evaluate.result_name(self.task, self.config)}.json").read_text())
        return {"protocol": written["protocol"], "numbers": written["numbers"]}

    def command(self, folder: str, data_name: str) -> str:
        """Write the command for the public, with the public names of the folder and of the data set."""
        words = [*_data_words(self.data | {"name": data_name}), *self.words]
        return shlex.join(["arcvq", "evaluate", self.task, folder, *(public(word) for word in words)])


def parse_measurements(texts: Sequence[str] | None, kind: str, data: DataConfig) -> list[Measurement]:
    """Parse what is to be measured, before anything is written.

    Args:
        texts: of each call the task, then options, as a shell would split them; None: the kind's first task.
        kind: tokenizer or pipeline.
        data: of the run; its options are set for every call.

    Raises:
        ValueError: another task than those of the kind, none of the kind's first task, or options that do not go
            together. An unknown option ends the process as it does in `arcvq evaluate`.
    """
    measured = []
    for text in [TASKS[kind][0]] if texts is None else texts:
        try:
            task, *words = shlex.split(text) or [""]
        except ValueError as error:
            raise ValueError(f"--evaluate {text!r:.80}: {error}; close the quotation") from error
        if task not in TASKS[kind]:
            raise ValueError(
                f"--evaluate {text!r:.80} begins with none of {', '.join(TASKS[kind])}, tasks for a {kind}"
            )
        for word in words:
            if (option := word.partition("=")[0]) in ("--output", "--data.name", "--config"):
                raise ValueError(
                    f"--evaluate {text!r:.80}: leave out {option}, which arcvq export sets or does without"
                )
        options = _evaluated_options(data)
        parser = evaluate.make_parser()
        config = parser.parse([task, ".", *_data_words(options), *words])
        refuse_skipping(config)
        evaluate.folders_to_measure(config)
        refuse_unused(config, parser.get_defaults(), UNUSED[task], f"of {task}")
        measured.append(Measurement(task, words, options, config))
    if TASKS[kind][0] not in {measurement.task for measurement in measured}:
        raise ValueError(f"--evaluate names no {TASKS[kind][0]}; a {kind}'s card shows its numbers, so add it")
    return measured


def _evaluated_options(data: DataConfig) -> dict[str, Any]:
    """Select the options of a data set that an evaluation heeds, where they are not the defaults."""
    defaults, given = asdict(DataConfig()), asdict(data)
    names = [field.name for field in fields(DataConfig) if field.name not in _OF_TRAINING]
    return {name: given[name] for name in names if name == "name" or given[name] != defaults[name]}


def _data_words(options: dict[str, Any]) -> list[str]:
    return [
        f"--data.{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in options.items()
    ]
