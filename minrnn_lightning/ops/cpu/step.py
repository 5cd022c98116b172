"""One step of a stack of blocks on CPUs: divides the rows of the batch between threads and calls the kernel."""

import ctypes
import struct
from collections.abc import Sequence

from minrnn_lightning.ops.cpu import step_kernels, threads

MIN_ROWS = 4  # of a thread: with fewer, all of them would read the weights for little work


def run(batch: int, dim: int, depth: int, fields: Sequence[int], most_threads: int) -> None:
    """Run the kernel.

    Args:
        batch: Number of rows.
        dim: Width of the stack.
        depth: Number of blocks.
        fields: The rest of the call from ``step_kernels.X`` on: addresses, and the fields of each block.
        most_threads: Most threads to use.
    """
    rows = max(MIN_ROWS, -(-batch // most_threads))
    units = -(-batch // rows)
    numbers = struct.pack(f"{6 + len(fields)}q", 0, units, batch, dim, depth, rows, *fields)
    call = (ctypes.c_int64 * (6 + len(fields))).from_buffer_copy(numbers)
    threads.run(step_kernels.compiled().address, call, units)
