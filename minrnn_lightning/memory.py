"""Memory of the process: freed blocks are reused instead of returned to the operating system, and the peak."""

import ctypes
import os
import sys

from minrnn_lightning.errors import InputError

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt, <malloc.h>
NEVER = -1
GROWTH = 1 << 26  # bytes by which the heap grows at least


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory, so that the large tensors of each step do not fault in fresh pages.

    By default it maps every large block anew and unmaps it when it is freed; the system then zeroes each page at its
    first use. With this the process stays at its peak instead. ``MINRNN_KEEP_MEMORY=0`` leaves malloc alone. Source:
    https://man7.org/linux/man-pages/man3/mallopt.3.html

    Returns:
        Whether malloc was changed: not outside Linux, with another C library, or if the variable is 0.

    Raises:
        InputError: ``MINRNN_KEEP_MEMORY`` is neither 0 nor 1.
    """
    setting = os.environ.get("MINRNN_KEEP_MEMORY", "1")
    if setting not in ("0", "1"):
        raise InputError(f"MINRNN_KEEP_MEMORY must be 0 or 1, got {setting!r}")
    if setting == "0" or sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER), (TOP_PAD, GROWTH))
    return all(libc.mallopt(parameter, value) for parameter, value in settings)


def peak_memory() -> float | None:
    """Peak memory of the process so far in MB; None on Windows, where Python cannot report it."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
