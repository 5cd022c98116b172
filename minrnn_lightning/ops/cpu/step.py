"""One step of layers or blocks on CPUs: divides the rows of the batch between threads and calls the kernel."""

import ctypes
from collections.abc import Callable
from typing import Any

from minrnn_lightning.ops.cpu import step_kernels, threads

MIN_ROWS = 4  # of a thread: with fewer, all of them would read the weights for little work


def run(entry: Callable[[Any], None], batch: int, call: "ctypes.Array[Any]", most_threads: int) -> None:
    """Run a kernel.

    Args:
        entry: ``step_kernels.layers`` or ``step_kernels.blocks``.
        batch: Number of rows.
        call: What the kernel reads; how the rows are divided is written into it here.
        most_threads: Most threads to use.
    """
    rows = max(MIN_ROWS, -(-batch // most_threads))
    units = -(-batch // rows)
    call[step_kernels.UNITS], call[step_kernels.BATCH], call[step_kernels.ROWS] = units, batch, rows
    threads.run(step_kernels.compiled(entry).address, call, units)
