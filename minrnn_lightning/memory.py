"""Memory: freed blocks are reused instead of returned to the operating system; the peak, and what the machine has."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from minrnn_lightning.errors import InputError

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # parameters of glibc's mallopt, <malloc.h>
NEVER = -1
GROWTH = 1 << 26  # smallest growth of the heap in bytes

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of Linux's control groups, version 2
LARGEST_MEMORY = 1 << 44  # where the machine does not say how much it has


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory, so that the large tensors of each step cause no page faults.

    By default it maps every large block separately and unmaps it when freed; the system then zeroes each page at its
    first use. With this the process stays at its peak instead. ``MINRNN_KEEP_MEMORY=0`` leaves malloc as it is. Source:
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
    """Peak memory of the process so far in MB; None where the system cannot say."""
    if sys.platform == "win32":
        return _peak_on_windows()
    try:
        import resource
    except ImportError:  # not every Python has it
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows.

    Source: https://learn.microsoft.com/windows/win32/api/psapi/ns-psapi-process_memory_counters
    """

    _fields_ = [
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        *((f"unused_{number}", ctypes.c_size_t) for number in range(7)),
    ]


def _peak_on_windows() -> float | None:
    """Peak of the working set in MB."""
    kernel: Any = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined, unused-ignore]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    query = kernel.K32GetProcessMemoryInfo
    query.argtypes = [ctypes.c_void_p, ctypes.POINTER(_ProcessMemory), ctypes.c_uint32]
    counters = _ProcessMemory(cb=ctypes.sizeof(_ProcessMemory))
    if not query(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
        return None
    return float(counters.PeakWorkingSetSize) / 1e6


def machine_memory() -> int | None:
    """Bytes of memory of this machine, or of its container where that has less; None where the system cannot say."""
    if not hasattr(os, "sysconf"):  # Windows
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = CONTAINER_LIMIT.read_text(encoding="ascii").strip()
    except OSError:  # not Linux, or an older one
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory


def check_memory(size: float, what: str) -> None:
    """Refuse what this machine has too little memory for, before anything is allocated.

    Args:
        size: Bytes that are needed at least.
        what: What needs them, as the subject of the sentence.

    Raises:
        InputError: The machine has less memory, or the number of bytes is beyond what one can have.
    """
    memory = machine_memory() or LARGEST_MEMORY
    if size > memory:
        raise InputError(
            f"{what} would take {size / 1e9:,.0f} GB at least, and this machine has {memory / 1e9:,.0f} GB of memory"
        )
