"""The scan on CPUs: which blocks of channels to give to which thread, and the tensors as the kernels want them."""

import ctypes
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minrnn_lightning.ops import cpu_kernels
from minrnn_lightning.ops.portable import state_dtype

Array = npt.NDArray[Any]
Strides = tuple[int, int]  # from row to row, from step to step

KINDS = {"linear": cpu_kernels.LINEAR, "positive": cpu_kernels.POSITIVE, "identity": cpu_kernels.IDENTITY}
LINE = 16  # blocks begin at cache lines, so that no two threads write one
ALONE = 1 << 15  # fewer elements than this are not worth a second thread
HUGE_PAGE, MADV_HUGEPAGE = 1 << 21, 14  # bytes; the advice of <sys/mman.h>
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
NO_RESET = np.zeros((0, 0), np.bool_)


def forward(k: Tensor, v: Tensor, initial: Tensor | None, reset: Tensor | None, kind: str, reverse: bool) -> Tensor:
    """Every state of the scan, (batch, length, dim), in the type of ``k``."""
    h = _empty(k)
    if h.numel():
        sequences = [part for x in (k, v, h) for part in _flat(x)]
        scan = _resets(reset), _order(k.shape[1], reverse), KINDS[kind]
        _run(cpu_kernels.forward, k.shape, *sequences, _state(initial, k), *scan)
    return h.to(k.dtype)


def backward(
    grad: Tensor,
    k: Tensor,
    v: Tensor,
    h: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of k, v and the initial state, from that of every state."""
    d_k, d_v = _empty(k), _empty(k)
    d_initial = torch.zeros(k.shape[0], k.shape[2], dtype=state_dtype(k.dtype))
    if d_k.numel():
        sequences = [part for x in (grad, k, v, h, d_k, d_v) for part in _flat(x)]
        scan = _resets(reset), _order(k.shape[1], reverse), KINDS[kind]
        _run(cpu_kernels.backward, k.shape, *sequences, _state(initial, k), d_initial.numpy(), *scan)
    return d_k.to(k.dtype), d_v.to(k.dtype), d_initial


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The type in which a kernel reads and writes: NumPy has no vectorised float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _empty(like: Tensor) -> Tensor:
    """A result to write, of the shape of ``like``, in huge pages where Linux grants them.

    The system zeroes new memory page by page at the first touch, which in small pages takes longer than the scan.
    """
    tensor = torch.empty(like.shape, dtype=_stored(like.dtype))
    if tensor.nbytes >= 2 * HUGE_PAGE and _madvise is not None:
        start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - start), MADV_HUGEPAGE)
    return tensor


def _flat(x: Tensor) -> tuple[Array, Strides]:
    """The memory under ``x``, from its first element on, and where in it the steps are."""
    x = x.detach().to(_stored(x.dtype))
    if x.stride(2) != 1 and x.shape[2] > 1:
        x = x.contiguous()
    row, step = x.stride(0), x.stride(1)
    flat = x.as_strided(((x.shape[0] - 1) * row + (x.shape[1] - 1) * step + x.shape[2],), (1,))
    array = (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()
    return array, (row, step)


def _order(length: int, reverse: bool) -> Array:
    steps = np.arange(length)
    return np.ascontiguousarray(steps[::-1]) if reverse else steps


def _state(initial: Tensor | None, k: Tensor) -> Array:
    if initial is None:
        return np.zeros((k.shape[0], k.shape[2]), np.float64 if k.dtype == torch.float64 else np.float32)
    array: Array = initial.detach().contiguous().numpy()
    return array


def _resets(reset: Tensor | None) -> Array:
    if reset is None:
        return NO_RESET
    array: Array = reset.contiguous().numpy()
    return array


def _run(kernel: Any, shape: torch.Size, *args: Any) -> None:
    """Share the blocks of channels of all rows between as many threads as PyTorch uses."""
    batch, length, dim = shape
    threads = 1 if batch * length * dim < ALONE else torch.get_num_threads()
    per_row = -(-threads // batch)  # blocks that a row needs, so that every thread has one
    block = min(cpu_kernels.BLOCK, -(-dim // per_row // LINE) * LINE)
    units = batch * -(-dim // block)
    threads = min(threads, units)
    run = partial(kernel, *args, block)
    cuts = [units * i // threads for i in range(threads + 1)]
    others = [_pool(threads - 1).submit(run, *cuts[i : i + 2]) for i in range(1, threads)]
    run(*cuts[:2])
    for other in others:
        other.result()


_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a forked process has none of its parent's threads


def _pool(threads: int) -> ThreadPoolExecutor:
    """The helpers of the calling thread's own work, kept for the next call."""
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="minrnn")
    return _pools[threads]
