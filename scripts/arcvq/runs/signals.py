"""A training that is asked to end: it completes its step, saves, and exits with a status that schedulers understand."""

import ctypes
import os
import signal
import sys
from types import FrameType, TracebackType

# What schedulers send some time before they kill.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_PR_SET_PDEATHSIG = 1


class Stopping:
    """Within it the signals are kept for the end of a step, and do not end the process.

    Attributes:
        signal: the last of them; None as long as there was none.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stopping":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        _end_with_the_launcher()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def exit(self) -> None:
        """Ends the process with the status of one that the signal has ended, 128 + its number."""
        sys.exit(128 + (self.signal or signal.SIGTERM))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)


def _end_with_the_launcher() -> None:
    """Has the kernel send SIGTERM when the launcher dies, which passes signals on to one process alone or not at all.

    Without a launcher the parent is a shell, whose end is none of the training's business.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
