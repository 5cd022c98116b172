"""Loops for CPUs over what lies between the matrix products of a block: norm and convolution, dropout and sum, GELU.

They are compiled like those of the scan, see ``kernels``. A unit of work is a number of steps that does not depend on
the number of threads; sums over all steps are written for each unit, so that they do not depend on it either. A call is
an array of integers: the number of the next unit, sizes and options at the indices named below, and addresses of
contiguous arrays.
"""

import functools
import zlib
from pathlib import Path

import numpy as np
from numba import carray, cfunc, njit, types

from minrnn_lightning.ops.cpu import kernels
from minrnn_lightning.ops.cpu.kernels import ONE, ZERO, element, exp, load, next_unit, pointer, store

UNITS, BATCH, LENGTH, DIM, TAPS, EPS, DROPPED, OPERANDS = range(1, 9)  # indices into a call
MOST_OPERANDS = 12
UNIT_STEPS = 64  # steps of a unit of work
SQRT_HALF, INV_SQRT_2PI = np.float32(0.5**0.5), np.float32(0.3989422804014327)
MINUS_HALF, HALF = np.float32(-0.5), np.float32(0.5)

# erfc(z) · exp(z²) on 0 ≤ z ≤ 6.7 as a polynomial of t = 1 / (1 + 0.35 z), by relative minimax fit (error 1.2e-6)
T_SLOPE = np.float32(0.35)
T1, T2, T3, T4 = np.float32(0.19570860), np.float32(0.22093284), np.float32(0.055629708), np.float32(0.54378903)
T5, T6, T7 = np.float32(-0.51303977), np.float32(0.66922778), np.float32(-0.17224692)

kernel = njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")  # sums over a row are vectorised


@element
def array(call, number, size, dtype):
    """An operand of the call: a flat array."""
    return carray(pointer(call[OPERANDS + number]), (size,), dtype)


@kernel
def unit_steps(call, unit):
    """A unit of work: row, and where it begins and ends in the length."""
    chunks = (call[LENGTH] + UNIT_STEPS - 1) // UNIT_STEPS
    begin = unit % chunks * UNIT_STEPS
    return unit // chunks, begin, min(begin + UNIT_STEPS, call[LENGTH])


@kernel
def standardize(x, i, dim, eps, out):
    """Write (x − mean) / deviation of one step to ``out``; return 1 / deviation."""
    total = ZERO
    for d in range(dim):
        value = load((x, (0, 0)), i + d)
        out[d] = value
        total += value
    mean = total / np.float32(dim)
    squares = ZERO
    for d in range(dim):
        centred = out[d] - mean
        out[d] = centred
        squares += centred * centred
    scale = ONE / np.sqrt(squares / np.float32(dim) + eps)
    for d in range(dim):
        out[d] *= scale
    return scale


@kernel
def norm_forward(call, eps, x, y, weight, bias, filters, shift, state, reset):
    """Write y = conv(norm(x)), or norm(x) with no taps; ``state`` holds the steps before the first."""
    kernels.prefer_wide_vectors()
    length, dim, taps = call[LENGTH], call[DIM], call[TAPS]
    past = max(taps - 1, 0)
    scratch = np.empty((past + 2) * dim, np.float32)
    window, total = scratch[dim:], scratch[:dim]
    y_out = (y, (0, 0))
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, begin, end = unit_steps(call, unit)
        visible = -1  # earlier steps of the same sequence in the window
        for t in range(begin - past if state.size > 0 else max(begin - past, 0), end):
            at = (t + past) % (past + 1) * dim
            now = window[at : at + dim]  # not window[at + d]: an index that may be negative stops LLVM's vectoriser
            if t < 0:
                first = (row * past + past + t) * dim
                now[:] = state[first : first + dim]
            else:
                standardize(x, (row * length + t) * dim, dim, eps, now)
                for d in range(dim):
                    now[d] = now[d] * weight[d] + bias[d]
            visible = min(visible + 1, past)
            if t >= 0 and reset.size > 0 and reset[row * length + t]:
                visible = 0
            if t >= begin:
                o = (row * length + t) * dim
                if taps == 0:
                    for d in range(dim):
                        store(y_out, o + d, now[d])
                else:
                    for d in range(dim):
                        total[d] = shift[d] + filters[d] * now[d]
                    for lag in range(1, visible + 1):
                        at = (t - lag + past) % (past + 1) * dim
                        earlier, factors = window[at : at + dim], filters[lag * dim : (lag + 1) * dim]
                        for d in range(dim):
                            total[d] += factors[d] * earlier[d]
                    for d in range(dim):
                        store(y_out, o + d, total[d])
        unit = next_unit(call)


@kernel
def norm_backward(call, eps, x, dy, residual, dx, weight, bias, filters, state, reset, sums):
    """Write dx = residual + ∂y/∂x · dy, and each unit's sums of ∂weight, ∂bias, ∂shift, ∂filters, (3 + taps) · dim."""
    kernels.prefer_wide_vectors()
    length, dim, taps = call[LENGTH], call[DIM], call[TAPS]
    past = max(taps - 1, 0)
    scratch = np.empty((6 + taps) * dim, np.float32)
    unscaled, normed, g, total = scratch[:dim], scratch[dim : 2 * dim], scratch[2 * dim : 3 * dim], scratch[3 * dim :]
    d_weight, d_bias, d_shift, d_filters = total[:dim], total[dim : 2 * dim], total[2 * dim : 3 * dim], total[3 * dim :]
    dy_in, residual_in, dx_out = (dy, (0, 0)), (residual, (0, 0)), (dx, (0, 0))
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, begin, end = unit_steps(call, unit)
        total[:] = 0
        for t in range(-past if state.size > 0 and begin == 0 else begin, end):
            i = (row * length + t) * dim
            scale = ZERO
            if t < 0:
                first = (row * past + past + t) * dim
                normed[:] = state[first : first + dim]
            else:
                scale = standardize(x, i, dim, eps, unscaled)
                for d in range(dim):
                    normed[d] = unscaled[d] * weight[d] + bias[d]
            if taps == 0:
                for d in range(dim):
                    g[d] = load(dy_in, i + d)
            else:
                if t >= 0:
                    for d in range(dim):
                        incoming = load(dy_in, i + d)
                        d_shift[d] += incoming
                        d_filters[d] += incoming * normed[d]
                        g[d] = filters[d] * incoming
                for lag in range(1, taps):
                    later = t + lag
                    if later >= length or (later >= 0 and reset.size > 0 and reset[row * length + later]):
                        break
                    if later >= 0:
                        factors, d_factors = (
                            filters[lag * dim : (lag + 1) * dim],
                            d_filters[lag * dim : (lag + 1) * dim],
                        )
                        for d in range(dim):
                            incoming = load(dy_in, i + lag * dim + d)
                            d_factors[d] += incoming * normed[d]
                            g[d] += factors[d] * incoming
            if t >= 0:
                mean, slope = ZERO, ZERO
                for d in range(dim):
                    d_weight[d] += g[d] * unscaled[d]
                    d_bias[d] += g[d]
                    weighted = g[d] * weight[d]
                    g[d] = weighted
                    mean += weighted
                    slope += weighted * unscaled[d]
                mean, slope = mean / np.float32(dim), slope / np.float32(dim)
                for d in range(dim):
                    step = scale * (g[d] - mean - unscaled[d] * slope)
                    store(dx_out, i + d, load(residual_in, i + d) + step)
        first = unit * (3 + taps) * dim
        sums[first : first + (3 + taps) * dim] = total
        unit = next_unit(call)


@kernel
def add_forward(call, x, y, draws, out):
    """Write out = x + y, without elements of y whose draw, from 0 to 255, is less than DROPPED."""
    kernels.prefer_wide_vectors()
    dim, dropped = call[DIM], np.float32(call[DROPPED])
    scale = np.float32(256) / np.float32(256 - call[DROPPED])
    kept = np.empty(dim, np.float32)
    x_in, y_in, result = (x, (0, 0)), (y, (0, 0)), (out, (0, 0))
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, begin, end = unit_steps(call, unit)
        for t in range(begin, end):
            i = (row * call[LENGTH] + t) * dim
            if draws.size > 0:
                for d in range(dim):
                    kept[d] = np.float32(draws[np.uintp(i + d)])
                for d in range(dim):
                    kept[d] = (scale if kept[d] >= dropped else ZERO) * load(y_in, i + d)
                for d in range(dim):
                    store(result, i + d, load(x_in, i + d) + kept[d])
            else:
                for d in range(dim):
                    store(result, i + d, load(x_in, i + d) + load(y_in, i + d))
        unit = next_unit(call)


@kernel
def add_backward(call, grad, draws, dy):
    """∂y of ``add_forward`` with draws."""
    kernels.prefer_wide_vectors()
    dim, dropped = call[DIM], np.uint8(call[DROPPED])
    scale = np.float32(256) / np.float32(256 - call[DROPPED])
    grad_in, dy_out = (grad, (0, 0)), (dy, (0, 0))
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, begin, end = unit_steps(call, unit)
        first, last = (row * call[LENGTH] + begin) * dim, (row * call[LENGTH] + end) * dim
        for i in range(first, last):
            factor = scale if draws[np.uintp(i)] >= dropped else ZERO
            store(dy_out, i, factor * load(grad_in, i))
        unit = next_unit(call)


@kernel
def gelu_backward(call, grad, x, y, sums):
    """∂x of y = GELU(x), written over ``grad``, y itself, and the sums of ∂x over the steps of each unit."""
    kernels.prefer_wide_vectors()
    dim = call[DIM]
    scratch = np.empty(3 * dim, np.float32)  # slices of one array, see ``kernels.backward``
    total, steps, values = scratch[:dim], scratch[dim : 2 * dim], scratch[2 * dim :]
    gradient, x_in, y_out = (grad, (0, 0)), (x, (0, 0)), (y, (0, 0))
    unit = next_unit(call)
    while unit < call[UNITS]:
        row, begin, end = unit_steps(call, unit)
        total[:] = 0
        for t in range(begin, end):
            i = (row * call[LENGTH] + t) * dim
            for d in range(dim):
                value = load(x_in, i + d)
                bell = exp(MINUS_HALF * value * value)
                s = ONE / (ONE + T_SLOPE * SQRT_HALF * abs(value))
                tail = s * (T1 + s * (T2 + s * (T3 + s * (T4 + s * (T5 + s * (T6 + s * T7))))))
                below = HALF * bell * tail  # Φ(−|x|)
                phi = ONE - below if value >= 0 else below
                steps[d], values[d] = phi + value * INV_SQRT_2PI * bell, value * phi
            for d in range(dim):
                steps[d] *= load(gradient, i + d)
                total[d] += steps[d]
            for d in range(dim):
                store(gradient, i + d, steps[d])
                store(y_out, i + d, values[d])
        sums[unit * dim : (unit + 1) * dim] = total
        unit = next_unit(call)


@element
def start(address):
    """The call at an address, and its EPS."""
    call = carray(address, (OPERANDS + MOST_OPERANDS,), np.int64)
    return call, np.float32(carray(address, (OPERANDS + MOST_OPERANDS,), np.float64)[EPS])


@element
def resets(call, number):
    """The resets of every step; an empty array if there are none."""
    present = min(1, call[OPERANDS + number])
    return array(call, number, present * call[BATCH] * call[LENGTH], np.bool_)


@element
def states(call, number):
    """The steps before the first ones; an empty array if there are none."""
    present = min(1, call[OPERANDS + number])
    return array(call, number, present * call[BATCH] * (call[TAPS] - 1) * call[DIM], np.float32)


def norm_forward_entry(wide, narrow):
    """``norm_forward``; operands: x, y, weight, bias, filters, shift, state, reset."""

    def entry(address):
        kernels.prefer_wide_vectors()  # also in the functions that are inlined here
        call, eps = start(address)
        dim, size = call[DIM], call[BATCH] * call[LENGTH] * call[DIM]
        weight, bias = array(call, 2, dim, np.float32), array(call, 3, dim, np.float32)
        filters, shift = array(call, 4, call[TAPS] * dim, np.float32), array(call, 5, dim, np.float32)
        x, y = array(call, 0, size, wide), array(call, 1, size, narrow)
        norm_forward(call, eps, x, y, weight, bias, filters, shift, states(call, 6), resets(call, 7))

    return entry


def norm_backward_entry(wide, narrow):
    """``norm_backward``; operands: x, dy, residual, dx, weight, bias, filters, state, reset, sums."""

    def entry(address):
        kernels.prefer_wide_vectors()
        call, eps = start(address)
        dim, size = call[DIM], call[BATCH] * call[LENGTH] * call[DIM]
        x, dy = array(call, 0, size, wide), array(call, 1, size, narrow)
        residual, dx = array(call, 2, size, wide), array(call, 3, size, wide)
        weight, bias = array(call, 4, dim, np.float32), array(call, 5, dim, np.float32)
        filters = array(call, 6, call[TAPS] * dim, np.float32)
        sums = array(call, 9, call[UNITS] * (3 + call[TAPS]) * dim, np.float32)
        norm_backward(call, eps, x, dy, residual, dx, weight, bias, filters, states(call, 7), resets(call, 8), sums)

    return entry


def add_forward_entry(wide, narrow):
    """``add_forward``; operands: x, y, draws, out."""

    def entry(address):
        kernels.prefer_wide_vectors()
        call, _ = start(address)
        size = call[BATCH] * call[LENGTH] * call[DIM]
        draws = array(call, 2, min(1, call[OPERANDS + 2]) * size, np.uint8)
        add_forward(call, array(call, 0, size, wide), array(call, 1, size, narrow), draws, array(call, 3, size, wide))

    return entry


def add_backward_entry(wide, narrow):
    """``add_backward``; operands: grad, draws, dy."""

    def entry(address):
        kernels.prefer_wide_vectors()
        call, _ = start(address)
        size = call[BATCH] * call[LENGTH] * call[DIM]
        grad, draws, dy = array(call, 0, size, wide), array(call, 1, size, np.uint8), array(call, 2, size, narrow)
        add_backward(call, grad, draws, dy)

    return entry


def gelu_backward_entry(wide, narrow):
    """``gelu_backward`` in one type; operands: grad, x, y, sums."""

    def entry(address):
        kernels.prefer_wide_vectors()
        call, _ = start(address)
        size = call[BATCH] * call[LENGTH] * call[DIM]
        grad, x = array(call, 0, size, narrow), array(call, 1, size, narrow)
        sums = array(call, 3, call[UNITS] * call[DIM], np.float32)
        gelu_backward(call, grad, x, array(call, 2, size, narrow), sums)

    return entry


@functools.cache
def helpers() -> int:
    """A number for the text of ``kernels``: Numba's cache notices changes only in the file that holds the entry."""
    return zlib.crc32(Path(kernels.__file__).read_bytes())


@functools.cache
def compiled(entry, wide, narrow):
    """A kernel's C function; its ``address`` is valid as long as the result exists.

    Args:
        entry: One of the functions above.
        wide: Type of the sum of all blocks: float32, or uint16 for bfloat16.
        narrow: Type of what is added to it.
    """
    function = entry(getattr(np, wide), getattr(np, narrow))
    function.__qualname__ = f"{entry.__name__}_{wide}_{narrow}_{helpers():x}"
    return cfunc(types.void(types.voidptr), cache=kernels.CACHE, error_model="numpy")(function)
