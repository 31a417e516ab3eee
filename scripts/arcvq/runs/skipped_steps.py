"""Count steps that are skipped because a loss or gradient is not finite; too many in a row end the run.

The device decides whether to update the parameters, and counts. On a GPU the host reads the counters one step late
instead of waiting for the device. That loses nothing, because a skipped step leaves the weights unchanged.
"""

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

# Derived from the other terms, as the gradient is; never the first cause of a NaN.
_DERIVED = ("loss", "bits_per_code")


class SkippedSteps:
    """The skipped steps of a run. All processes hold the same counts.

    Args:
        accelerator: of the run.
        total: number of skipped steps so far.
        in_row: number of steps skipped in a row, up to the last step.

    Attributes:
        in_row: number of steps skipped in a row, as the last `sync` read it.
        first_skipped: the first step of this row, counted from 1.
        just_began: whether the step that the last `sync` read is the first of a row.
    """

    def __init__(self, accelerator: Accelerator, total: int = 0, in_row: int = 0):
        self._accelerator = accelerator
        self._total, self._in_row = (torch.tensor(count, device=accelerator.device) for count in (total, in_row))
        self._broken: dict[str, Tensor] = {}  # in the first step of the current row
        self._of_step: dict[str, Tensor] = {}
        self._reader = _AsyncReader(accelerator.device)
        self._reported = total
        self.in_row, self.first_skipped, self.just_began = in_row, 0, False

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return which terms were not finite in the first step of the current row."""
        return {"broken": self._broken}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore these terms."""
        self._broken = dict(state.get("broken", {}))

    @property
    def counts(self) -> dict[str, int]:
        """Return the counters for a checkpoint. Waits for the device."""
        return {"skipped_steps": int(self._total), "skipped_in_row": int(self._in_row)}

    def count(self, updates: Iterable[Tensor]) -> None:
        """Count a step from the bool scalars that tell which modules were updated; it is skipped unless all were."""
        complete = torch.stack(list(updates)).all()
        self._in_row = torch.where(complete, 0, self._in_row + 1)
        self._total = self._total + ~complete

    def observe(self, terms: Mapping[str, Tensor], completed: bool) -> None:
        """Record which scalars are not finite, in the current step or in the one just `completed`."""
        for name, value in terms.items():
            broken = ~value.detach().isfinite().all()
            self._of_step[name] = self._of_step[name] | broken if name in self._of_step else broken
        if completed:
            begins = self._in_row == 1
            none = torch.zeros((), dtype=torch.bool, device=self._accelerator.device)
            for name in self._broken | self._of_step:
                before, now = self._broken.get(name, none), self._of_step.get(name, none)
                self._broken[name] = torch.where(begins, now, before)
            self._of_step = {}

    def sync(self, stop_requested: bool, step: int) -> bool:
        """Update `in_row`, `first_skipped` and `just_began`, and tell whether any process has asked to stop.

        Every process calls this after each step; on a GPU the values are those of the previous step.
        """
        requests = torch.tensor(int(stop_requested), device=self._accelerator.device)
        if self._accelerator.num_processes > 1:
            requests = self._accelerator.reduce(requests, "sum")
        of_step, total, self.in_row, requests = self._reader.read([self._total, self._in_row, requests], step)
        self.first_skipped = of_step - self.in_row + 1
        self.just_began, self._reported = total > self._reported and self.in_row == 1, total
        return requests > 0

    def warning(self) -> str | None:
        """Return a warning if a row of skipped steps has just begun; every process calls this."""
        return f"step {self.first_skipped} is skipped: {self.first_nonfinite()} not finite" if self.just_began else None

    def too_many(self, limit: int) -> str | None:
        """Return an error message if `limit` steps in a row were skipped; every process calls this."""
        if self.in_row < limit:
            return None
        return (
            f"{self.in_row} steps in a row were skipped, from step {self.first_skipped} on, in which "
            f"{self.first_nonfinite()} not finite: look at that term; start again under another run.name with a lower "
            "optim.lr or with optim.max_grad_norm, or raise run.max_skipped_steps"
        )

    def first_nonfinite(self) -> str:
        """Name the terms that were not finite in the first step of the row; every process calls this."""
        names = list(self._broken)
        if not names:
            return "the loss is"
        flags = torch.stack([self._broken[name] for name in names]).float()
        flags = self._accelerator.reduce(flags, "sum") if self._accelerator.num_processes > 1 else flags
        broken = [name for name, flag in zip(names, flags.tolist(), strict=True) if flag]
        losses = [name for name in broken if not name.startswith("gradient_norm")]
        shown = [name for name in losses if name not in _DERIVED] or losses[:1] or broken[:1] or ["the loss"]
        return f"{', '.join(shown)} {'is' if len(shown) == 1 else 'are'}"


class _AsyncReader:
    """Reads integers from the device without waiting for the current step."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before: tuple[int, Tensor, torch.cuda.Event] | None = None

    def read(self, numbers: list[Tensor], step: int) -> list[int]:
        """Return the step and the integers; on a GPU those of the previous call, and zeros on the first."""
        stacked = torch.stack(numbers)
        if self._device.type != "cuda":
            return [step, *stacked.tolist()]
        host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
        host.copy_(stacked, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        before, self._before = self._before, (step, host, copied)
        if before is None:
            return [0] * (1 + len(numbers))
        before[2].synchronize()
        return [before[0], *before[1].tolist()]
