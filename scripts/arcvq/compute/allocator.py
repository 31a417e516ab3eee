"""Keep freed memory in the process instead of returning it to the system."""

import ctypes
import os
import sys

# The options of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next allocation.

    By default every large tensor gets its own mapping, which is returned when the tensor is freed, and the next step
    waits until the kernel has mapped and cleared the same pages again. This does nothing without glibc, or if the user
    has configured malloc.
    """
    if keeps_freed_memory():
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)


def keeps_freed_memory() -> bool:
    """Tell whether `keep_freed_memory` has an effect here."""
    configured = [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]
    return not configured and sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
