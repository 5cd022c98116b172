"""Run compiled kernels on PyTorch's OpenMP threads; a second pool would compete with their busy-wait.

After each matrix product PyTorch's threads busy-wait for the next work, for milliseconds. A thread of another pool that
runs meanwhile shares its core with one of them, and the scan takes up to twice as long. So the work is given to
PyTorch's threads, through the function that compilers call for a parallel region of OpenMP.
"""

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_function = functools.cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))  # one object for each address
_pools: dict[int, ThreadPoolExecutor] = {}


def _find_openmp() -> ctypes.CDLL | None:
    """PyTorch's OpenMP library if it has GCC's interface, as Clang's has too; Microsoft's does not."""
    library = ctypes.CDLL(torch._C.__file__)
    return library if hasattr(library, "GOMP_parallel") else None


_openmp = _find_openmp()


def _reset_after_fork() -> None:
    """Forget the threads of the parent: a forked process has none of them, which OpenMP does not notice."""
    global _openmp
    _openmp = None
    _pools.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_after_fork)


def run(address: int, call: "ctypes.Array[Any]", threads: int) -> None:
    """Run a C function in several threads at once, and return when all have finished.

    Args:
        address: Address of the function, void (void *).
        call: Its argument, the same in every thread.
        threads: Number of threads, the calling one among them.
    """
    function = _function(address)
    if threads == 1:
        function(call)
    elif _openmp is None:
        others = [_pool(threads - 1).submit(function, call) for _ in range(threads - 1)]
        function(call)
        for other in others:
            other.result()
    else:
        # All of PyTorch's threads, even with less to do: for another number, OpenMP ends some and starts new ones.
        _openmp.GOMP_parallel(function, call, torch.get_num_threads(), 0)


def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool for where PyTorch's threads are not available, kept for the next call."""
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="minrnn")
    return _pools[threads]
