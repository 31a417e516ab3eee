"""Run `arcvq VERB ...` in a process that ends, as by SIGTERM, when the one that has started it is gone.

python child.py PARENT NICE VERB ...

It is started by its path and imports nothing of the project: the verb may be that of another checkout, on PYTHONPATH.
"""

import contextlib
import os
import runpy
import signal
import sys
import threading
import time

import psutil

# Seconds between two looks for the parent.
_LOOK = 1.0


def end_with(parent: psutil.Process) -> None:
    """Wait for the end of a process, and send SIGTERM to this one: a training saves its step and ends."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between two of these calls
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Watch the parent, lower the priority by NICE, and run the verb."""
    parent, nice = int(sys.argv.pop(1)), int(sys.argv.pop(1))
    if not psutil.pid_exists(parent):
        return
    threading.Thread(target=end_with, args=(psutil.Process(parent),), daemon=True).start()
    if hasattr(os, "nice"):  # Windows has none
        os.nice(nice)
    runpy.run_module("arcvq", run_name="__main__")


if __name__ == "__main__":
    main()
