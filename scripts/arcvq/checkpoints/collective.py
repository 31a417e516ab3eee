"""Run an action on one process or on all, so that all processes fail together if one fails."""

import pickle
from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError

# Errors of saving and loading, by the file system and by the formats' libraries.
FILE_ERRORS = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)


def on_main(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Run `action` on the main process while the others wait; if it fails, all fail."""
    on_each(accelerator, action if accelerator.is_main_process else lambda: None)


def on_each(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Run `action` on every process; if it fails on one, all fail with its error."""
    failures: list[Exception | None] = [None]
    try:
        action()
    except FILE_ERRORS as error:
        failures = [error]
    if accelerator.num_processes > 1:
        reasons = gather_object([None if failures[0] is None else reason_of(failures[0])])
        others = [OSError(reason) for reason in reasons if reason]
        failures = failures if failures[0] else others
    if failures and failures[0]:
        raise failures[0]


def reason_of(error: Exception) -> str:
    """Return an error's first line; for the file system's errors, the reason and the file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # torch names only its own source line
        return "the disk is full, or a file may not grow so large"
    return (str(error).splitlines() or [type(error).__name__])[0]
