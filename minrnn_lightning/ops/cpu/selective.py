"""Mamba's selective scan on CPUs: passes contiguous float32 tensors to the kernels."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minrnn_lightning.ops.cpu import selective_kernels, threads
from minrnn_lightning.ops.cpu.launch import MIN_PARALLEL_ELEMENTS


def forward(
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    start: Tensor | None,
    reset: Tensor | None,
    *,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The outputs, the states after the last step, and with ``keep`` those that ``backward`` needs.

    Args:
        u: (batch, length, dim), float32 and contiguous as all others but ``reset``.
        dt: The same shape.
        a: (size, dim).
        b: (batch, length, size).
        c: The same shape as b.
        start: The states before the first step, (batch, size, dim); zeros if None.
        reset: Bool (batch, length), True where the state before is replaced by zeros.
        keep: Whether a gradient will be asked for.
    """
    batch, length, dim = u.shape
    y, end, kept = torch.empty_like(u), u.new_empty(batch, len(a), dim), None
    if keep:
        kept = u.new_empty(batch, -(-length // selective_kernels.SPAN), len(a), dim)
    _run(selective_kernels.forward_entry, u, len(a), u, dt, a, b, c, start, reset, y, end, kept)
    return y, end, kept


def backward(
    d_y: Tensor,
    d_end: Tensor,
    u: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    reset: Tensor | None,
    kept: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, dt, a, b, c and start, from those of the outputs and of the last states."""
    batch, _, dim = u.shape
    d_u, d_dt, flow = torch.empty_like(u), torch.empty_like(dt), d_end.clone()
    d_a = u.new_empty(batch, *a.shape)
    d_b, d_c = (u.new_empty(_blocks(dim), *each.shape) for each in (b, c))
    operands = d_y, u, dt, a, b, c, reset, kept, d_u, d_dt, d_a, d_b, d_c, flow
    _run(selective_kernels.backward_entry, u, len(a), *operands)
    return d_u, d_dt, d_a.sum(0), d_b.sum(0), d_c.sum(0), flow


def _blocks(dim: int) -> int:
    blocks: int = -(-dim // selective_kernels.BLOCK)
    return blocks


def _run(entry: Callable[..., Any], u: Tensor, size: int, *operands: Tensor | None) -> None:
    batch, length, dim = u.shape
    units = batch * _blocks(dim)
    addresses = [0 if x is None else x.data_ptr() for x in operands]
    addresses += [0] * (selective_kernels.MOST_OPERANDS - len(addresses))
    call = [0, units, batch, length, dim, size, *addresses]
    number = 1 if u.numel() * size < MIN_PARALLEL_ELEMENTS else min(torch.get_num_threads(), units)
    threads.run(selective_kernels.compiled(entry).address, (ctypes.c_int64 * len(call))(*call), number)
