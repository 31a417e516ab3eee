"""The speed of a training since its start, and when it will end by it."""

from datetime import datetime


class Pace:
    """Steps of a training by time. The time until the first new step is that of a start, and does not count."""

    def __init__(self):
        self._first: tuple[int, datetime] | None = None
        self._last: tuple[int, datetime] | None = None

    def see(self, step: int, now: datetime) -> None:
        """Note how far the training is. A step back is that of a training that repeats some after its checkpoint."""
        if self._last is None or step < self._last[0]:
            self._first, self._last = None, (step, now)
        elif step > self._last[0]:
            self._last = (step, now)
            self._first = self._first or self._last

    def expected_end(self, steps: int | None) -> datetime | None:
        """Return when the last of `steps` will be done; None before two new steps were seen."""
        if steps is None or self._first is None or self._first == self._last:
            return None
        per_step = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return self._last[1] + max(0, steps - self._last[0]) * per_step
