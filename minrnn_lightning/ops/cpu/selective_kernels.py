"""Mamba's selective scan for CPUs, forward and backward, which stores the states before every SPAN steps only.

Compiled like the loops of ``block_kernels``. A unit of work is a block of channels of one row: its states, one row of
channels for each number of the state, stay in the cache. A call is an array of integers: the number of the next unit,
sizes at the indices named below, and addresses of contiguous float32 arrays.
"""

import functools

import numpy as np
from numba import carray, cfunc, types

from minrnn_lightning.ops.cpu import kernels
from minrnn_lightning.ops.cpu.block_kernels import helpers, kernel
from minrnn_lightning.ops.cpu.kernels import ZERO, element, exp, next_unit, pointer

UNITS, BATCH, LENGTH, DIM, SIZE, OPERANDS = range(1, 7)  # indices into a call; SIZE: numbers of a channel's state
MOST_OPERANDS = 16
BLOCK = 128  # channels of a unit: longer loops, whose scratch memory still fits into the second-level cache
SPAN = 16  # steps between the states that forward keeps for backward


@element
def array(call, number, size, dtype):
    """An operand of the call, a flat array; an empty one where there is none."""
    return carray(pointer(call[OPERANDS + number]), (min(1, call[OPERANDS + number]) * size,), dtype)


@kernel
def copy_block(source, row_size, first, width, target):
    """Copy a block of channels of each row of ``source`` to a row of ``target``, which has BLOCK columns."""
    for n in range(len(target) // BLOCK):
        for d in range(width):
            target[n * BLOCK + d] = source[n * row_size + first + d]


@kernel
def forward(call, u, dt, a, b, c, start, reset, y, end, kept):
    """Write y, the last states ``end`` and, unless that is empty, ``kept``: the states before every SPAN steps.

    ``a`` is (size, dim), ``start`` and ``end`` are (batch, size, dim), ``kept`` is (batch, spans, size, dim).
    """
    kernels.prefer_wide_vectors()
    length, dim, size = call[LENGTH], call[DIM], call[SIZE]
    spans, blocks = (length + SPAN - 1) // SPAN, (dim + BLOCK - 1) // BLOCK
    scratch = np.empty((2 * size + 3) * BLOCK, np.float32)
    state, rates = scratch[: size * BLOCK], scratch[size * BLOCK : 2 * size * BLOCK]
    rest = scratch[2 * size * BLOCK :]
    step, value, total = rest[:BLOCK], rest[BLOCK : 2 * BLOCK], rest[2 * BLOCK :]
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, first = unit // blocks, unit % blocks * BLOCK
        width = min(BLOCK, dim - first)
        copy_block(a, dim, first, width, rates)
        state[:] = 0
        if start.size > 0:
            copy_block(start[row * size * dim :], dim, first, width, state)
        for t in range(length):
            if kept.size > 0 and t % SPAN == 0:
                for n in range(size):
                    at = ((row * spans + t // SPAN) * size + n) * dim + first
                    kept[at : at + width] = state[n * BLOCK : n * BLOCK + width]
            if reset.size > 0 and reset[row * length + t]:
                state[:] = 0
            i = (row * length + t) * dim + first
            for d in range(width):
                step[d] = dt[np.uintp(i + d)]
                value[d] = step[d] * u[np.uintp(i + d)]
                total[d] = ZERO
            for n in range(size):
                into, out = b[(row * length + t) * size + n], c[(row * length + t) * size + n]
                h, rate = state[n * BLOCK : (n + 1) * BLOCK], rates[n * BLOCK : (n + 1) * BLOCK]
                for d in range(width):
                    h[d] = exp(step[d] * rate[d]) * h[d] + value[d] * into
                    total[d] += out * h[d]
            y[i : i + width] = total[:width]
        for n in range(size):
            at = (row * size + n) * dim + first
            end[at : at + width] = state[n * BLOCK : n * BLOCK + width]
        unit = next_unit(call)


@kernel
def backward(call, d_y, u, dt, a, b, c, reset, kept, d_u, d_dt, d_a, d_b, d_c, flow):
    """Write the gradients of ``forward``; ``flow`` holds that of the last states and becomes that of the first ones.

    ``d_a`` is (batch, size, dim), ``d_b`` and ``d_c`` are (blocks, batch, length, size): sums within each unit.
    """
    kernels.prefer_wide_vectors()
    length, dim, size, batch = call[LENGTH], call[DIM], call[SIZE], call[BATCH]
    spans, blocks, area = (length + SPAN - 1) // SPAN, (dim + BLOCK - 1) // BLOCK, size * BLOCK
    scratch = np.empty(((2 * SPAN + 4) * size + 5) * BLOCK, np.float32)
    states, decays = scratch[: (SPAN + 1) * area], scratch[(SPAN + 1) * area : (2 * SPAN + 1) * area]
    own = scratch[(2 * SPAN + 1) * area :]
    rates, d_rates, d_state, rest = own[:area], own[area : 2 * area], own[2 * area : 3 * area], own[3 * area :]
    step, value, incoming = rest[:BLOCK], rest[BLOCK : 2 * BLOCK], rest[2 * BLOCK : 3 * BLOCK]
    d_value, d_step = rest[3 * BLOCK : 4 * BLOCK], rest[4 * BLOCK :]
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, block = unit // blocks, unit % blocks
        first = block * BLOCK
        width = min(BLOCK, dim - first)
        copy_block(a, dim, first, width, rates)
        copy_block(flow[row * size * dim :], dim, first, width, d_state)
        d_rates[:] = 0
        for span in range(spans - 1, -1, -1):
            begin, stop = span * SPAN, min((span + 1) * SPAN, length)
            copy_block(kept[(row * spans + span) * size * dim :], dim, first, width, states[:area])
            for t in range(begin, stop):
                i = (row * length + t) * dim + first
                for d in range(width):
                    step[d] = dt[np.uintp(i + d)]
                    value[d] = step[d] * u[np.uintp(i + d)]
                starts_anew = reset.size > 0 and reset[row * length + t]
                for n in range(size):
                    into, at = b[(row * length + t) * size + n], (t - begin) * area + n * BLOCK
                    h, decay, after = states[at : at + BLOCK], decays[at : at + BLOCK], states[at + area :]
                    rate = rates[n * BLOCK : (n + 1) * BLOCK]
                    if starts_anew:
                        for d in range(width):
                            decay[d] = ZERO
                            after[d] = value[d] * into
                    else:
                        for d in range(width):
                            decay[d] = exp(step[d] * rate[d])
                            after[d] = decay[d] * h[d] + value[d] * into
            for t in range(stop - 1, begin - 1, -1):
                i = (row * length + t) * dim + first
                for d in range(width):
                    step[d] = dt[np.uintp(i + d)]
                    value[d] = u[np.uintp(i + d)]
                    incoming[d] = d_y[np.uintp(i + d)]
                    d_value[d] = ZERO
                    d_step[d] = ZERO
                for n in range(size):
                    into, out = b[(row * length + t) * size + n], c[(row * length + t) * size + n]
                    at = (t - begin) * area + n * BLOCK
                    h, decay, after = states[at : at + BLOCK], decays[at : at + BLOCK], states[at + area :]
                    rate, d_rate = rates[n * BLOCK : (n + 1) * BLOCK], d_rates[n * BLOCK : (n + 1) * BLOCK]
                    g = d_state[n * BLOCK : (n + 1) * BLOCK]
                    sum_b, sum_c = ZERO, ZERO
                    for d in range(width):
                        d_h = g[d] + out * incoming[d]
                        sum_c += incoming[d] * after[d]
                        sum_b += d_h * step[d] * value[d]
                        d_value[d] += d_h * into
                        g[d] = d_h * decay[d]
                        d_exponent = g[d] * h[d]
                        d_step[d] += d_exponent * rate[d]
                        d_rate[d] += d_exponent * step[d]
                    at = ((block * batch + row) * length + t) * size + n
                    d_b[at], d_c[at] = sum_b, sum_c
                for d in range(width):
                    d_u[np.uintp(i + d)] = d_value[d] * step[d]
                    d_dt[np.uintp(i + d)] = d_value[d] * value[d] + d_step[d]
        for n in range(size):
            at = (row * size + n) * dim + first
            d_a[at : at + width] = d_rates[n * BLOCK : n * BLOCK + width]
            flow[at : at + width] = d_state[n * BLOCK : n * BLOCK + width]
        unit = next_unit(call)


def forward_entry():
    """``forward``; operands: u, dt, a, b, c, start, reset, y, end, kept."""

    def entry(address):
        kernels.prefer_wide_vectors()  # also in the functions that are inlined here
        call = carray(address, (OPERANDS + MOST_OPERANDS,), np.int64)
        batch, steps, channels, size = call[BATCH], call[BATCH] * call[LENGTH], call[DIM], call[SIZE]
        spans, area = (call[LENGTH] + SPAN - 1) // SPAN, call[SIZE] * call[DIM]
        long, short = steps * channels, steps * size
        u, dt, a = array(call, 0, long, np.float32), array(call, 1, long, np.float32), array(call, 2, area, np.float32)
        b, c = array(call, 3, short, np.float32), array(call, 4, short, np.float32)
        start, reset = array(call, 5, batch * area, np.float32), array(call, 6, steps, np.bool_)
        y, end = array(call, 7, long, np.float32), array(call, 8, batch * area, np.float32)
        forward(call, u, dt, a, b, c, start, reset, y, end, array(call, 9, batch * spans * area, np.float32))

    return entry


def backward_entry():
    """``backward``; operands: d_y, u, dt, a, b, c, reset, kept, d_u, d_dt, d_a, d_b, d_c, flow."""

    def entry(address):
        kernels.prefer_wide_vectors()
        call = carray(address, (OPERANDS + MOST_OPERANDS,), np.int64)
        batch, steps, channels, size = call[BATCH], call[BATCH] * call[LENGTH], call[DIM], call[SIZE]
        spans, area = (call[LENGTH] + SPAN - 1) // SPAN, call[SIZE] * call[DIM]
        long, short, blocks = steps * channels, steps * size, (call[DIM] + BLOCK - 1) // BLOCK
        d_y, u = array(call, 0, long, np.float32), array(call, 1, long, np.float32)
        dt, a = array(call, 2, long, np.float32), array(call, 3, area, np.float32)
        b, c = array(call, 4, short, np.float32), array(call, 5, short, np.float32)
        reset, kept = array(call, 6, steps, np.bool_), array(call, 7, batch * spans * area, np.float32)
        d_u, d_dt = array(call, 8, long, np.float32), array(call, 9, long, np.float32)
        d_a, d_b = array(call, 10, batch * area, np.float32), array(call, 11, blocks * short, np.float32)
        d_c, flow = array(call, 12, blocks * short, np.float32), array(call, 13, batch * area, np.float32)
        backward(call, d_y, u, dt, a, b, c, reset, kept, d_u, d_dt, d_a, d_b, d_c, flow)

    return entry


@functools.cache
def compiled(entry):
    """The C function of one of the entries above; its ``address`` is valid as long as the result exists."""
    function = entry()
    function.__qualname__ = f"{entry.__name__}_{helpers():x}"
    return cfunc(types.void(types.voidptr), cache=kernels.CACHE, error_model="numpy")(function)
