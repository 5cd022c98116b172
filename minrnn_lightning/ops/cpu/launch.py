"""The scan on CPUs: divides the work between threads and passes tensors to the kernels."""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from minrnn_lightning.ops.cpu import kernels, threads
from minrnn_lightning.ops.eager import final_of_empty, state_dtype

KINDS = {"linear": kernels.LINEAR, "positive": kernels.POSITIVE, "identity": kernels.IDENTITY}
STORAGE_NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "uint16"}  # NumPy types
CACHE_LINE = 16  # elements; blocks begin at cache lines, so that no two threads write one
MIN_PARALLEL_ELEMENTS = 1 << 15  # with fewer, a second thread costs more than it saves
HUGE_PAGE, MADV_HUGEPAGE = 1 << 21, 14  # bytes; the advice of <sys/mman.h>
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def forward(
    k: Tensor, v: Tensor, f: Tensor | None, initial: Tensor | None, reset: Tensor | None, kind: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Every state of the scan, (batch, length, dim), in the type of ``k``, and the last one in that of the state."""
    h, final = _empty(k), final_of_empty(k, initial)
    if h.numel():
        scan = _Scan(k, f, reset, kind, reverse, split_from=3)
        starts = scan.states()
        if initial is not None:
            starts[:, 0] = initial
        if scan.chunks > 1:
            product, end = scan.states(), scan.states()
            scan.run(kernels.ends_entry, k, v, f, product, end)
            _carry(starts.numpy(), product.numpy(), end.numpy())
        scan.run(kernels.forward_entry, k, v, f, h, starts)
        final = starts[:, -1].contiguous()
    return h.to(k.dtype), final


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
    d_initial = k.new_zeros(k.shape[0], k.shape[2], dtype=state_dtype(k.dtype))
    if d_k.numel():
        scan = _Scan(k, f, reset, kind, reverse, split_from=2)
        flows = scan.states()
        if scan.chunks > 1:
            product, end = scan.states(), scan.states()
            scan.run(kernels.ends_entry, k, grad, f, product, end, backward=True)
            _carry(*(x.numpy()[:, ::-1] for x in (flows, product, end)))
        first = d_initial if initial is None else initial.detach().contiguous()
        scan.run(kernels.backward_entry, grad, k, v, f, h, d_k, d_v, d_f, first, flows)
        d_initial = flows[:, 0].contiguous()
    return d_k.to(k.dtype), d_v.to(k.dtype), d_f.to(k.dtype), d_initial


def _carry(starts: npt.NDArray[Any], product: npt.NDArray[Any], end: npt.NDArray[Any]) -> None:
    """Write the state before each chunk to ``starts``, which holds the one before the first chunk."""
    for chunk in range(1, starts.shape[1]):
        starts[:, chunk] = product[:, chunk - 1] * starts[:, chunk - 1] + end[:, chunk - 1]


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The type in which a kernel reads and writes: NumPy has no vectorised float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _empty(like: Tensor) -> Tensor:
    """A result to write, of the shape of ``like``, in huge pages where Linux grants them.

    The system zeroes new memory page by page at the first touch, which in small pages takes longer than the scan.
    """
    tensor = like.new_empty(like.shape, dtype=_stored(like.dtype))
    if tensor.nbytes >= 2 * HUGE_PAGE and _madvise is not None:
        start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        _madvise(ctypes.c_void_p(start), ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - start), MADV_HUGEPAGE)
    return tensor


def _operand(x: Tensor | None) -> Tensor | None:
    """The tensor in a type that the kernels support, with contiguous channels."""
    if x is None:
        return None
    if x.dtype == torch.float16:
        x = x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@functools.lru_cache(maxsize=8)
def _order(length: int, reverse: bool) -> Tensor:
    steps = torch.arange(length, device="cpu")
    return steps.flip(0) if reverse else steps


class _Scan:
    """One scan, divided between as many threads as PyTorch uses: by rows, blocks of channels, chunks of the length.

    A length in chunks is read twice, which is faster with at least ``split_from`` threads per block.
    """

    def __init__(
        self, k: Tensor, f: Tensor | None, reset: Tensor | None, kind: str, reverse: bool, split_from: int
    ) -> None:
        batch, length, dim = k.shape
        threads = 1 if k.numel() < MIN_PARALLEL_ELEMENTS else torch.get_num_threads()
        per_row = -(-threads // batch)  # blocks that a row needs, so that every thread has one
        block = min(kernels.BLOCK, -(-dim // per_row // CACHE_LINE) * CACHE_LINE)
        units = batch * -(-dim // block)
        self.chunks = min(threads // units, length) if threads >= split_from * units else 1
        self.threads = min(threads, units * self.chunks)
        self.shape, self.wide, self.stored = (
            (batch, self.chunks, dim),
            state_dtype(k.dtype),
            STORAGE_NAMES[_stored(k.dtype)],
        )
        self.gates = None if f is None else True
        self.reset, self.order = None if reset is None else reset.contiguous(), _order(length, reverse)
        self.sizes = units * self.chunks, batch, length, dim, self.chunks, block, KINDS[kind]

    def states(self) -> Tensor:
        """Zeros, (batch, chunks, dim), in the type of the state."""
        return torch.zeros(self.shape, dtype=self.wide, device="cpu")

    def run(self, entry: Callable[..., Any], *operands: Tensor | None, backward: bool = False) -> None:
        """Run a kernel; its operands are sequences, (batch, length, dim), and states, (batch, chunks, dim)."""
        tensors = [_operand(x) for x in operands]
        layouts = [(0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(1)) for x in tensors]
        reset = 0 if self.reset is None else self.reset.data_ptr()
        call = [
            0,
            *self.sizes,
            backward,
            reset,
            self.order.data_ptr(),
            *(number for layout in layouts for number in layout),
        ]
        kernel = kernels.compiled(entry, self.stored, self.gates)
        threads.run(kernel.address, (ctypes.c_int64 * len(call))(*call), self.threads)
