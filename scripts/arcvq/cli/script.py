"""Run a verb's `main`: prepare the process, and print an error of the user's as one line."""

import atexit
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import distributed

from arcvq.compute.allocator import keep_freed_memory


def fail(message: str) -> NoReturn:
    """Print one line to standard error, and exit with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run_script(main: Callable[[], object]) -> None:
    """Run a verb's `main`; turn an error of the user's, as a ValueError or an OSError, into one line.

    ARCVQ_TRACEBACK=1 in the environment shows the traceback instead.
    """
    keep_freed_memory()
    if not torch.accelerator.is_available():
        # Without this accelerate takes each of several processes without a GPU for the only one.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a .functools.lru_cache")  # in diffusers
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error reports retries without a network once
    try:
        main()
        _end_one_of_several(0)
    except SystemExit as end:  # after a signal; all processes have saved
        if isinstance(end.code, int):
            _end_one_of_several(end.code)
        raise
    except KeyboardInterrupt:
        print("interrupted; a training goes on from its newest checkpoint when it is started again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            print("note: another process has ended; its own error says why", file=sys.stderr)
            sys.exit(2)
        message = _message(error)
        if message is None or os.environ.get("ARCVQ_TRACEBACK") == "1":
            raise
        fail(" ".join(message.split()))


def _end_one_of_several(status: int) -> None:
    """End this process with `status` at once if it is one of several, else do nothing.

    Gloo's threads can outlive `destroy_process_group` (a device mesh holds the group), and a thread that asks for the
    interpreter while Python finalizes it aborts the process. So Python's exit functions run, its finalization does not.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _message(error: Exception) -> str | None:
    """Choose the message for the user; None for an error of the program itself."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory ({text or 'no more is given'}); lower optim.batch_size, or raise optim.accumulation"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" ({error.filename})" if error.filename else ""
        remedy = "raise ulimit -f or the quota" if error.errno == errno.EFBIG else "make room"
        return f"{error.strerror}{where}: {remedy}, and start the same command again; what was complete is still there"
    if isinstance(error, ValueError | OSError):
        return text
    if "does not have a deterministic implementation" in text:
        return f"{text.partition('.')[0]}; leave out run.deterministic, or set another option that does without it"
    if text.startswith("DataLoader worker"):
        return (
            f"a process that loads data has ended ({text.splitlines()[0]}); lower data.num_workers if memory is short"
        )
    return None
