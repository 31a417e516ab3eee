"""Steps whose loss or gradient is not finite: left out, counted, and after too many in a row the end of the run.

The device decides whether an update is made, and counts. The host learns of it one step late where waiting for the
device would cost time, and nothing is lost by that: the weights stay as they were.
"""

from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

# The sum of the terms, and what is computed of it: like the gradient they only follow the term that went first.
_DERIVED = ("loss", "bits_per_code")


class SkippedSteps:
    """What is known of a run's skipped steps, alike on all processes.

    Args:
        accelerator: brings the processes together.
        total: how many there have been.
        in_row: how many of them came last, without a step between them.

    Attributes:
        in_row: when it was last read.
        first_skipped: the first of these steps, counted from 1.
        just_began: whether the first one had just been.
    """

    def __init__(self, accelerator: Accelerator, total: int = 0, in_row: int = 0):
        self._accelerator = accelerator
        self._total, self._in_row = (torch.tensor(count, device=accelerator.device) for count in (total, in_row))
        self._broken: dict[str, Tensor] = {}  # in the first step of the present row
        self._of_step: dict[str, Tensor] = {}
        self._reader = _AsyncReader(accelerator.device)
        self._reported = total
        self.in_row, self.first_skipped, self.just_began = in_row, 0, False

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Which terms went first in the present row, in a group."""
        return {"broken": self._broken}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Goes on in the row of another one."""
        self._broken = dict(state.get("broken", {}))

    @property
    def counts(self) -> dict[str, int]:
        """For a checkpoint. Waits for the device."""
        return {"skipped_steps": int(self._total), "skipped_in_row": int(self._in_row)}

    def count(self, updates: Iterable[Tensor]) -> None:
        """Takes in a step by its updates, bool scalars; it is skipped unless all of them were made."""
        made = torch.stack(list(updates)).all()
        self._in_row = torch.where(made, 0, self._in_row + 1)
        self._total = self._total + ~made

    def observe(self, terms: Mapping[str, Tensor], completed: bool) -> None:
        """Takes in scalars of the step in progress, or of the one just `completed`."""
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
        """Brings `in_row`, `first_skipped` and `just_began` up to date; whether any process has asked to stop.

        To be called by all processes after each step; on a GPU the answer is that of the step before.
        """
        requests = torch.tensor(int(stop_requested), device=self._accelerator.device)
        if self._accelerator.num_processes > 1:
            requests = self._accelerator.reduce(requests, "sum")
        of_step, total, self.in_row, requests = self._reader.read([self._total, self._in_row, requests], step)
        self.first_skipped = of_step - self.in_row + 1
        self.just_began, self._reported = total > self._reported and self.in_row == 1, total
        return requests > 0

    def warning(self) -> str | None:
        """A warning, if a step has just been skipped after one that was not; to be called by all processes."""
        return f"step {self.first_skipped} is skipped: {self.first_nonfinite()} not finite" if self.just_began else None

    def too_many(self, limit: int) -> str | None:
        """What to say where so many were skipped in a row; to be called by all processes."""
        if self.in_row < limit:
            return None
        return (
            f"{self.in_row} steps in a row were skipped, from step {self.first_skipped} on, in which "
            f"{self.first_nonfinite()} not finite: look at that term; start again under another run.name with a lower "
            "optim.lr or with optim.max_grad_norm, or raise run.max_skipped_steps"
        )

    def first_nonfinite(self) -> str:
        """The names of what was not finite in the first step of the row; to be called by all processes."""
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
    """Numbers of the device for the host, which does not wait for the step in progress."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before: tuple[int, Tensor, torch.cuda.Event] | None = None

    def read(self, numbers: list[Tensor], step: int) -> list[int]:
        """The step and these integers; on a GPU those of the call before, at first zeros."""
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
