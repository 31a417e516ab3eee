"""Stop a training at the end of its step after a signal, with the exit status that schedulers expect."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType

# Schedulers send these some time before they kill a job; Windows has the first alone.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
# These, and the Ctrl-C of a terminal.
ALL_SIGNALS = (*SIGNALS, signal.SIGINT)

_PR_SET_PDEATHSIG = 1


class Stopping:
    """Context in which these signals are recorded instead of ending the process.

    Args:
        signals: the signals.

    Attributes:
        signal: the last signal; None before the first.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS):
        self._signals = signals
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stopping":
        self._before = {number: signal.signal(number, self._record) for number in self._signals}
        _end_with_the_launcher()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def exit(self) -> None:
        """Exit with status 128 + signal number, as if the signal had ended the process."""
        sys.exit(128 + (self.signal or signal.SIGTERM))

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)


def _end_with_the_launcher() -> None:
    """Let the kernel send SIGTERM when the launcher dies, as the launcher does not pass signals to all processes.

    Without a launcher the parent is a shell, and the training outlives it.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
