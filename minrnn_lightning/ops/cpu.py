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
Sequence = tuple[Array, tuple[int, int]]  # flat, and its strides from row to row and from step to step

KINDS = {"linear": cpu_kernels.LINEAR, "positive": cpu_kernels.POSITIVE, "identity": cpu_kernels.IDENTITY}
LINE = 16  # blocks begin at cache lines, so that no two threads write one
ALONE = 1 << 15  # fewer elements than this are not worth a second thread
HUGE_PAGE, MADV_HUGEPAGE = 1 << 21, 14  # bytes; the advice of <sys/mman.h>
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
NO_RESET = np.zeros((0, 0), np.bool_)


def forward(
    k: Tensor, v: Tensor, f: Tensor | None, initial: Tensor | None, reset: Tensor | None, kind: str, reverse: bool
) -> Tensor:
    """Every state of the scan, (batch, length, dim), in the type of ``k``."""
    h = _empty(k)
    if h.numel():
        shares, scan = _Shares(k.shape, split_from=3), (_resets(reset), _order(k.shape[1], reverse), KINDS[kind])
        inputs = [_flat(x) for x in (k, v, f)]
        starts = shares.zeros(k)
        starts[:, 0] = _state(initial, k)
        if shares.chunks > 1:
            product, end = shares.zeros(k), shares.zeros(k)
            shares.run(cpu_kernels.ends, *inputs, False, product, end, *scan)
            _carry(starts, product, end)
        shares.run(cpu_kernels.forward, *inputs, _flat(h), starts, *scan)
    return h.to(k.dtype)


def backward(
    grad: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    h: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, f (an empty one if there is none) and the initial state, from that of every state."""
    d_k, d_v, d_f = _empty(k), _empty(k), _empty(k[:, :0] if f is None else f)
    d_initial = torch.zeros(k.shape[0], k.shape[2], dtype=state_dtype(k.dtype))
    if d_k.numel():
        shares, scan = _Shares(k.shape, split_from=2), (_resets(reset), _order(k.shape[1], reverse), KINDS[kind])
        flows = shares.zeros(k)
        if shares.chunks > 1:
            product, end = shares.zeros(k), shares.zeros(k)
            shares.run(cpu_kernels.ends, _flat(k), _flat(grad), _flat(f), True, product, end, *scan)
            _carry(flows[:, ::-1], product[:, ::-1], end[:, ::-1])
        results = d_k, d_v, None if f is None else d_f
        sequences = [_flat(x) for x in (grad, k, v, f, h, *results)]
        shares.run(cpu_kernels.backward, *sequences, _state(initial, k), flows, *scan)
        d_initial = torch.from_numpy(flows[:, 0].copy())
    return d_k.to(k.dtype), d_v.to(k.dtype), d_f.to(k.dtype), d_initial


def _carry(starts: Array, product: Array, end: Array) -> None:
    """The state before each chunk, given that before the first one, in the place of ``starts``."""
    for chunk in range(1, starts.shape[1]):
        starts[:, chunk] = product[:, chunk - 1] * starts[:, chunk - 1] + end[:, chunk - 1]


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


def _flat(x: Tensor | None) -> Sequence | None:
    """The memory under ``x``, from its first element on, and where in it the steps are."""
    if x is None:
        return None
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


class _Shares:
    """How a scan is shared between as many threads as PyTorch uses: rows, blocks of channels, chunks of the length.

    A length in chunks is walked twice, which pays from ``split_from`` idle threads a block on.
    """

    def __init__(self, shape: torch.Size, split_from: int) -> None:
        self.batch, length, self.dim = shape
        threads = 1 if shape.numel() < ALONE else torch.get_num_threads()
        per_row = -(-threads // self.batch)  # blocks that a row needs, so that every thread has one
        self.block = min(cpu_kernels.BLOCK, -(-self.dim // per_row // LINE) * LINE)
        units = self.batch * -(-self.dim // self.block)
        self.chunks = min(threads // units, length) if threads >= split_from * units else 1
        self.units = units * self.chunks
        self.threads = min(threads, self.units)

    def zeros(self, k: Tensor) -> Array:
        """One number for every chunk and channel, (batch, chunks, dim), in the type of the state."""
        return np.zeros((self.batch, self.chunks, self.dim), np.float64 if k.dtype == torch.float64 else np.float32)

    def run(self, kernel: Any, *args: Any) -> None:
        """Run the kernel on every unit."""
        run = partial(kernel, *args, self.block)
        cuts = [self.units * i // self.threads for i in range(self.threads + 1)]
        others = [_pool(self.threads - 1).submit(run, *cuts[i : i + 2]) for i in range(1, self.threads)]
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
