"""How the process's memory is handed back."""

import ctypes
import os
import sys

# The options of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next allocation; elsewhere, or if the user has set malloc up, does nothing.

    By default every large tensor is a mapping of its own, returned when it is freed, and the next step waits for the
    kernel to map and clear the same pages again.
    """
    if keeps_freed_memory():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` does anything here."""
    chosen = [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]
    return not chosen and sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
