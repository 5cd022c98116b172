"""What lies between the matrix products of a block, on CPUs: passes contiguous tensors to the kernels."""

import ctypes
import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minrnn_lightning.ops.cpu import block_kernels, threads
from minrnn_lightning.ops.cpu.launch import MIN_PARALLEL_ELEMENTS, STORAGE_NAMES


def norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    filters: Tensor | None,
    shift: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The causal convolution of norm(x), or norm(x) alone without filters, in a type.

    Args:
        x: (batch, length, dim), float32 or bfloat16.
        weight: Of the norm, (dim,), float32, as all others.
        bias: Of the norm.
        eps: Of the norm.
        filters: (kernel size, dim), from lag 0 on.
        shift: The bias of the convolution, (dim,).
        state: norm(x) of the steps before the first, (batch, kernel size − 1, dim); zeros if None.
        reset: Bool (batch, length), True where the convolution sees nothing before.
        dtype: Of the result.
    """
    y = x.new_empty(x.shape, dtype=dtype)
    operands = x, y, weight, bias, filters, shift, state, reset
    _run(block_kernels.norm_forward_entry, x, y, operands, taps=0 if filters is None else len(filters), eps=eps)
    return y


def norm_backward(
    grad: Tensor,
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    filters: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``residual`` plus the gradient of x; and those of weight, bias, shift and filters, (3 + kernel size, dim)."""
    d_x, taps = torch.empty_like(x), 0 if filters is None else len(filters)
    sums = x.new_empty(_units(x), 3 + taps, x.shape[-1], dtype=torch.float32)
    operands = x, grad, residual, d_x, weight, bias, filters, state, reset, sums
    _run(block_kernels.norm_backward_entry, x, grad, operands, taps=taps, eps=eps)
    return d_x, sums.sum(0)


def add_forward(x: Tensor, y: Tensor, draws: Tensor | None, dropped: int) -> Tensor:
    """Compute x + y without elements of y whose draw, from 0 to 255, is below ``dropped``, the others scaled up."""
    out = torch.empty_like(x)
    _run(block_kernels.add_forward_entry, x, y, (x, y, draws, out), dropped=dropped)
    return out


def add_backward(grad: Tensor, draws: Tensor, dropped: int, dtype: torch.dtype) -> Tensor:
    """The gradient of y in ``add_forward``."""
    d_y = grad.new_empty(grad.shape, dtype=dtype)
    _run(block_kernels.add_backward_entry, grad, d_y, (grad, draws, d_y), dropped=dropped)
    return d_y


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of (batch, length, dim) in bfloat16: GELU(x), and the sum over all steps of the gradient of x.

    That gradient is written over ``grad``: in memory of its own it would take half as long again.
    """
    y, sums = torch.empty_like(x), x.new_empty(_units(x), x.shape[-1], dtype=torch.float32)
    _run(block_kernels.gelu_backward_entry, x, x, (grad, x, y, sums))
    return y, sums.sum(0)


def _units(x: Tensor) -> int:
    """Units of work of (batch, length, dim)."""
    batch, length, _ = x.shape
    units: int = batch * -(-length // block_kernels.UNIT_STEPS)
    return units


def _run(
    entry: Callable[..., Any],
    wide: Tensor,
    narrow: Tensor,
    operands: tuple[Tensor | None, ...],
    *,
    taps: int = 0,
    eps: float = 0.0,
    dropped: int = 0,
) -> None:
    """Run a kernel over (batch, length, dim)."""
    batch, length, dim = wide.shape
    units = _units(wide)
    (eps_bits,) = struct.unpack("q", struct.pack("d", eps))
    addresses = [0 if x is None else x.data_ptr() for x in operands]
    addresses += [0] * (block_kernels.MOST_OPERANDS - len(addresses))
    call = [0, units, batch, length, dim, taps, eps_bits, dropped, *addresses]
    kernel = block_kernels.compiled(entry, STORAGE_NAMES[wide.dtype], STORAGE_NAMES[narrow.dtype])
    number = 1 if wide.numel() < MIN_PARALLEL_ELEMENTS else min(torch.get_num_threads(), units)
    threads.run(kernel.address, (ctypes.c_int64 * len(call))(*call), number)
