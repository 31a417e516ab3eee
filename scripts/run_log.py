"""The numbers of a run by step: metrics.jsonl, and TensorBoard events in tensorboard/."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The log in a run folder, for the one process that writes, going on after `step` completed steps.

    What an interrupted run logged after that step is dropped: it is computed, and logged, again.
    """

    def __init__(self, folder: Path, step: int):
        self._lines = folder / "metrics.jsonl"
        if self._lines.exists():
            lines = self._lines.read_text().splitlines(keepends=True)
            kept = self._lines.with_suffix(".tmp")
            kept.write_text("".join(line for line in lines if _step_of(line) <= step))
            kept.replace(self._lines)
        self._events = SummaryWriter(folder / "tensorboard", purge_step=step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One line, and one event per number."""
        with self._lines.open("a") as lines:
            lines.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes out what is left."""
        self._events.close()


def _step_of(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:  # the last line of a killed process
        return 1 << 62
