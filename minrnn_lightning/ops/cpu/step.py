"""One step of layers or blocks on CPUs: divides the rows of the batch between threads and calls the kernel."""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from minrnn_lightning.ops.cpu import step_kernels, threads

MIN_ROWS = 4  # of a thread: with fewer, all of them would read the weights for little work


def run(entry: Callable[[Any], None], batch: int, fields: Sequence[int], most_threads: int) -> None:
    """Run a kernel.

    Args:
        entry: ``step_kernels.layers`` or ``step_kernels.blocks``.
        batch: Number of rows.
        fields: The rest of the call from ``step_kernels.RESET`` on.
        most_threads: Most threads to use.
    """
    rows = max(MIN_ROWS, -(-batch // most_threads))
    units = -(-batch // rows)
    numbers = struct.pack(f"{4 + len(fields)}q", 0, units, batch, rows, *fields)
    call = (ctypes.c_int64 * (4 + len(fields))).from_buffer_copy(numbers)
    threads.run(step_kernels.compiled(entry).address, call, units)
