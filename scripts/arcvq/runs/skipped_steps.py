"""Count steps that are skipped because a loss or gradient is not finite; too many in a row end the run.

The device decides whether to update the parameters, and counts. On a GPU the host reads the counters one step late
instead of waiting for the device. That loses nothing, because a skipped step leaves the weights unchanged.
"""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from arcvq.runs.named_scalars import NamedScalars, Terms

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
        # total, in_row, and the number of processes that ask to stop
        self._counts = torch.tensor([total, in_row, 0], device=accelerator.device)
        self._total, self._in_row, self._requests = self._counts.unbind()
        self._broken = NamedScalars(torch.bool, accelerator.device)  # in the first step of the current row
        self._of_step = NamedScalars(torch.bool, accelerator.device)
        self._reader = _AsyncReader(accelerator.device)
        self._reported = total
        self.in_row, self.first_skipped, self.just_began = in_row, 0, False

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return which terms were not finite in the first step of the current row."""
        return {"broken": self._broken.by_name()}

    def load_state(self, state: Mapping[str, dict[str, Tensor]]) -> None:
        """Restore these terms."""
        self._broken.load(state.get("broken", {}))

    @property
    def counts(self) -> dict[str, int]:
        """Return the counters for a checkpoint. Waits for the device."""
        total, in_row, _ = self._counts.tolist()
        return {"skipped_steps": total, "skipped_in_row": in_row}

    def count(self, updates: Sequence[Tensor]) -> None:
        """Count a step from the bool scalars that tell which modules were updated; it is skipped unless all were."""
        complete = updates[0] if len(updates) == 1 else torch.stack(list(updates)).all()
        skipped = ~complete
        self._in_row.add_(1).mul_(skipped)
        self._total.add_(skipped)

    def observe(self, terms: Terms, completed: bool) -> None:
        """Record which scalars are not finite, in the current step or in the one just `completed`."""
        self._of_step.of(terms.names).logical_or_(~terms.finite)
        if completed:
            names = dict.fromkeys([*self._broken.names, *self._of_step.names])
            broken, of_step = self._broken.of(names), self._of_step.of(names)
            torch.where(self._in_row == 1, of_step, broken, out=broken)
            of_step.zero_()

    def sync(self, stop_requested: bool, step: int) -> bool:
        """Update `in_row`, `first_skipped` and `just_began`, and tell whether any process has asked to stop.

        Every process calls this after each step; on a GPU the values are those of the previous step.
        """
        several = self._accelerator.num_processes > 1
        if several:
            self._requests.fill_(int(stop_requested))
            self._requests.copy_(self._accelerator.reduce(self._requests, "sum"))
        of_step, total, self.in_row, requests = self._reader.read(self._counts, step)
        self.first_skipped = of_step - self.in_row + 1
        self.just_began, self._reported = total > self._reported and self.in_row == 1, total
        return requests > 0 if several else stop_requested

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
        by_name = self._broken.by_name()
        names = list(by_name)
        if not names:
            return "the loss is"
        flags = torch.stack(list(by_name.values())).float()
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

    def read(self, numbers: Tensor, step: int) -> list[int]:
        """Return the step and the integers (n,); on a GPU those of the previous call, and zeros on the first."""
        if self._device.type != "cuda":
            return [step, *numbers.tolist()]
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True, device="cpu")
        host.copy_(numbers, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        before, self._before = self._before, (step, host, copied)
        if before is None:
            return [0] * (1 + len(numbers))
        before[2].synchronize()
        return [before[0], *before[1].tolist()]
