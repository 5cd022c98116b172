"""C functions run by PyTorch's own threads, which would otherwise keep the cores from any others.

The threads with which PyTorch multiplies matrices wait for their next work at full speed, for milliseconds: a thread of
our own that is to run meanwhile shares its core with one of them, and the scan then takes up to twice as long. So the
work is given to them, through the function that compilers call for a parallel block of OpenMP.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_pools: dict[int, ThreadPoolExecutor] = {}


def _find_openmp() -> ctypes.CDLL | None:
    """The OpenMP of PyTorch, where it has the interface of GCC's: that of Clang has it too, Microsoft's has not."""
    library = ctypes.CDLL(torch._C.__file__)
    return library if hasattr(library, "GOMP_parallel") else None


_openmp = _find_openmp()


def _start_anew() -> None:
    """Forget the threads of the parent: a forked process has none of them, and OpenMP does not know."""
    global _openmp
    _openmp = None
    _pools.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_start_anew)


def run(address: int, call: "ctypes.Array[Any]", threads: int) -> None:
    """Run a C function in as many threads at once, and return when all are done.

    Args:
        address: Where the function is, void (void *).
        call: What each thread gives to it.
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
        # All of PyTorch's threads, even if there is less to do: another number would end some and start them anew.
        _openmp.GOMP_parallel(function, call, torch.get_num_threads(), 0)


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads of our own where those of PyTorch cannot be had, kept for the next call."""
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="minrnn")
    return _pools[threads]
