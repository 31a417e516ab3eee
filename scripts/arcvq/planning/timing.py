"""Measure the time of a training's steps."""

import time
from collections.abc import Sequence
from types import ModuleType

from arcvq.planning.dry_run import plan_data
from arcvq.planning.planned_training import PlannedTraining


def step_times(training: ModuleType, arguments: Sequence[str], steps: int) -> list[float]:
    """Measure the seconds of each of `steps` real steps of a training, on batches without contents.

    Args:
        training: its module, as arcvq.training.tokenizer.
        arguments: its command line.
        steps: number of steps.
    """
    parser = training.make_parser()
    config = parser.parse(list(arguments))
    training.check(config)
    planned = PlannedTraining(training, config, parser.settings(config), plan_data(config), processes=1)
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        planned.step()
        seconds.append(time.perf_counter() - began)
    return seconds
