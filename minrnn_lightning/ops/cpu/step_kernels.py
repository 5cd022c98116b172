"""One step of layers of minGRU or minLSTM, or of residual blocks around them, as one function compiled by Numba.

At small batches the operators of a step cost more than its products: a stack has dozens of them, and each takes
microseconds to be called. Here a thread takes some rows of the batch through all layers or blocks, float32 throughout.
The weights are read where they are, in the layout of ``nn.Linear``; nothing is prepared or kept between two steps.

A call is an array of integers: the number of the next unit of work (see ``kernels``), sizes and addresses, and from
BLOCKS or WEIGHTS on those of each block or layer, at the indices named below.
"""

import functools
import os

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from minrnn_lightning.ops.cpu import kernels
from minrnn_lightning.ops.cpu.kernels import HALF, ONE, ZERO, element, exp, gate, kernel, pointer, positive, sigmoid

NEXT, UNITS, BATCH, ROWS, RESET, X = range(6)  # indices into a call
DIM, DEPTH, Y, NORM, NORM_BIAS, BLOCKS = range(6, 12)  # of blocks
BLOCK_NORM, BLOCK_NORM_BIAS, KERNEL_SIZE, CONV, CONV_BIAS, WINDOW, NEW_WINDOW, HIDDEN, KIND, IDENTITY = range(10)
SIGNED, LOGITS, LOGITS_BIAS, H, NEW_H, OUT, OUT_BIAS = range(10, 17)  # of a block
MLP_HIDDEN, MLP_NORM, MLP_NORM_BIAS, MLP_KERNEL_SIZE, MLP_CONV, MLP_CONV_BIAS, MLP_WINDOW = range(17, 24)
NEW_MLP_WINDOW, UP, UP_BIAS, DOWN, DOWN_BIAS, BLOCK_FIELDS = range(24, 30)
LAYERS, FEATURES, UNITS_OF_LAYER, LAYER_KIND, LAYER_IDENTITY, LAYER_SIGNED, STATE, NEW_STATE, WEIGHTS = range(6, 15)
GRU, LSTM, UNNORMALIZED_LSTM = 0, 1, 2
EPS = np.float32(1e-5)  # of nn.LayerNorm

# log(2 Φ(−t)) / t on 0 ≤ t ≤ 13, by weighted minimax fit of degree 11: the error of Φ is at most 3e-8
Q0, Q1, Q2, Q3 = np.float32(-0.797884881), np.float32(-0.318305463), np.float32(-0.03635462), np.float32(0.00481916359)
Q4, Q5, Q6 = np.float32(1.54543386e-06), np.float32(-0.000198528156), np.float32(5.64772308e-05)
Q7, Q8, Q9 = np.float32(-8.94544883e-06), np.float32(8.87071849e-07), np.float32(-5.42791518e-08)
Q10, Q11 = np.float32(1.870196e-09), np.float32(-2.77191915e-11)
FARTHEST = np.float32(13)  # Φ(−13) is the last that is not denormal

# Of fast-math also another order of summation, for the sums that are products and norms; see ``kernels.kernel``.
reduction = njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
tile = njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy", forceinline=True)


@intrinsic
def separate(context):
    """Prefer wide vectors in a function, and do not inline it: four copies would take four times as long to compile."""

    def generate(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # see ``kernels.prefer_wide_vectors``
        return context.get_dummy_value()

    return types.void(), generate


@element
def array(address, start, size):
    """``size`` float32 numbers, from number ``start`` after an address on."""
    return carray(pointer(address + 4 * start), (size,), np.float32)


@element
def gelu(v):
    """GELU: v · Φ(v)."""
    t = abs(v)
    t = FARTHEST if t > FARTHEST else t
    high = Q6 + t * (Q7 + t * (Q8 + t * (Q9 + t * (Q10 + t * Q11))))
    q = Q0 + t * (Q1 + t * (Q2 + t * (Q3 + t * (Q4 + t * (Q5 + t * high)))))
    tail = HALF * exp(t * q)
    return v * (ONE - tail if v >= 0 else tail)


@tile
def four_by_four(y, x, weight, bias, row, unit, add):
    """Four units of four rows of ``linear``: each number that is read takes part in four products."""
    n, m = np.uintp(weight.size // bias.size), np.uintp(bias.size)
    i, j = np.uintp(row) * n, np.uintp(unit) * n
    a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = ZERO
    a20 = a21 = a22 = a23 = a30 = a31 = a32 = a33 = ZERO
    for k in range(n):
        x0, x1, x2, x3 = x[i + k], x[i + n + k], x[i + n + n + k], x[i + n + n + n + k]
        w0, w1, w2, w3 = weight[j + k], weight[j + n + k], weight[j + n + n + k], weight[j + n + n + n + k]
        a00, a01, a02, a03 = a00 + w0 * x0, a01 + w0 * x1, a02 + w0 * x2, a03 + w0 * x3
        a10, a11, a12, a13 = a10 + w1 * x0, a11 + w1 * x1, a12 + w1 * x2, a13 + w1 * x3
        a20, a21, a22, a23 = a20 + w2 * x0, a21 + w2 * x1, a22 + w2 * x2, a23 + w2 * x3
        a30, a31, a32, a33 = a30 + w3 * x0, a31 + w3 * x1, a32 + w3 * x2, a33 + w3 * x3
    p = np.uintp(row) * m + np.uintp(unit)
    write_four(y, p, bias, unit, add, a00, a10, a20, a30)
    write_four(y, p + m, bias, unit, add, a01, a11, a21, a31)
    write_four(y, p + m + m, bias, unit, add, a02, a12, a22, a32)
    write_four(y, p + m + m + m, bias, unit, add, a03, a13, a23, a33)


@tile
def four(y, x, weight, bias, row, unit, add):
    """Four units of one row of ``linear``."""
    n = np.uintp(weight.size // bias.size)
    i, j = np.uintp(row) * n, np.uintp(unit) * n
    a0 = a1 = a2 = a3 = ZERO
    for k in range(n):
        x0 = x[i + k]
        a0 += weight[j + k] * x0
        a1 += weight[j + n + k] * x0
        a2 += weight[j + n + n + k] * x0
        a3 += weight[j + n + n + n + k] * x0
    write_four(y, np.uintp(row) * np.uintp(bias.size) + np.uintp(unit), bias, unit, add, a0, a1, a2, a3)


@tile
def one(y, x, weight, bias, row, unit, add):
    """One unit of one row of ``linear``."""
    n = np.uintp(weight.size // bias.size)
    i, j = np.uintp(row) * n, np.uintp(unit) * n
    a = ZERO
    for k in range(n):
        a += weight[j + k] * x[i + k]
    write(y, np.uintp(row) * np.uintp(bias.size) + np.uintp(unit), a + bias[np.uintp(unit)], add)


@element
def write_four(y, p, bias, unit, add, a0, a1, a2, a3):
    """Four neighbouring results with their biases."""
    u = np.uintp(unit)
    write(y, p, a0 + bias[u], add)
    write(y, p + np.uintp(1), a1 + bias[u + np.uintp(1)], add)
    write(y, p + np.uintp(2), a2 + bias[u + np.uintp(2)], add)
    write(y, p + np.uintp(3), a3 + bias[u + np.uintp(3)], add)


@element
def write(y, p, a, add):
    """One result, added to what is there or in its place."""
    y[p] = y[p] + a if add else a


@reduction
def linear(y, x, weight_address, bias_address, features, units, rows, add):
    """Write x · Wᵀ + b of each row to y, or add it to y; W is (units, features)."""
    separate()
    weight, bias = array(weight_address, 0, units * features), array(bias_address, 0, units)
    for unit in range(0, units - 3, 4):
        row = 0
        while row + 4 <= rows:
            four_by_four(y, x, weight, bias, row, unit, add)
            row += 4
        while row < rows:
            four(y, x, weight, bias, row, unit, add)
            row += 1
    for unit in range(units - units % 4, units):
        for row in range(rows):
            one(y, x, weight, bias, row, unit, add)


@reduction
def layer_norm(y, x, weight, bias, rows):
    """``nn.LayerNorm`` of each row."""
    separate()
    dim = np.uintp(weight.size)
    for row in range(np.uintp(rows)):
        i = row * dim
        total = ZERO
        for d in range(dim):
            total += x[i + d]
        mean = total / np.float32(dim)
        squares = ZERO
        for d in range(dim):
            squares += (x[i + d] - mean) * (x[i + d] - mean)
        scale = ONE / np.sqrt(squares / np.float32(dim) + EPS)
        for d in range(dim):
            y[i + d] = (x[i + d] - mean) * scale * weight[d] + bias[d]


@kernel
def convolve(x, fields, dim, first, rows, reset):
    """The causal convolution in place, from the window of the inputs before to that of the next step.

    ``fields`` are the size of a kernel, which may be 0 for no convolution, and the addresses of weight, bias and
    windows; ``first`` is the number of the first row in these.
    """
    separate()
    if fields[0] == 0:
        return
    size = (fields[0] - 1) * dim
    weight, bias = array(fields[1], 0, size + dim), array(fields[2], 0, dim)
    window, new_window = array(fields[3], first * size, rows * size), array(fields[4], first * size, rows * size)
    dim = np.uintp(dim)
    past = np.uintp(weight.size // bias.size - 1)
    for row in range(np.uintp(rows)):
        i, j = row * dim, row * past * dim
        is_reset = reset.size > 0 and reset[row]
        for k in range(past * dim):
            new_window[j + k] = x[i + k - (past - np.uintp(1)) * dim] if k >= (past - np.uintp(1)) * dim else ZERO
        if not is_reset:
            for k in range(dim, past * dim):
                new_window[j + k - dim] = window[j + k]
        for d in range(dim):
            x[i + d] = weight[d] * x[i + d] + bias[d]
        if not is_reset:
            for lag in range(np.uintp(1), past + np.uintp(1)):
                for d in range(dim):
                    x[i + d] += weight[lag * dim + d] * window[j + (past - lag) * dim + d]


@kernel
def recurrence(new_h, h, logits, decay, kind, identity, signed, rows, hidden, reset):
    """From the logits and h_{t-1} to h_t; the logits are overwritten, ``decay`` is scratch."""
    separate()
    hidden, gates = np.uintp(hidden), np.uintp(1 if kind == GRU else 2)
    for row in range(np.uintp(rows)):
        o = row * hidden
        f = row * (gates + np.uintp(1)) * hidden  # of the first logit: minGRU's gate, or minLSTM's forget gate
        k, v = f + (gates - np.uintp(1)) * hidden, f + gates * hidden
        if kind == GRU:
            for d in range(hidden):
                smaller, above_half = gate(logits[k + d], None, 0)
                logits[k + d], decay[d] = shares(smaller, above_half)
        elif kind == LSTM:
            for d in range(hidden):
                smaller, above_half = gate(logits[k + d], (logits,), f + d)
                logits[k + d], decay[d] = shares(smaller, above_half)
        else:
            for d in range(hidden):
                decay[d] = sigmoid(logits[f + d])
                logits[k + d] = sigmoid(logits[k + d])
        if signed and kind == UNNORMALIZED_LSTM:
            for d in range(hidden):
                decay[d] = decay[d] + decay[d] - ONE
        elif signed:
            for d in range(hidden):
                decay[d] = ONE - (logits[k + d] + logits[k + d])
        if not identity:
            for d in range(hidden):
                logits[v + d] = positive(logits[v + d])
        if reset.size > 0 and reset[row]:
            for d in range(hidden):
                new_h[o + d] = logits[k + d] * logits[v + d]
        else:
            for d in range(hidden):
                new_h[o + d] = decay[d] * h[o + d] + logits[k + d] * logits[v + d]


@element
def shares(smaller, above_half):
    """The pair z and 1 − z."""
    larger = ONE - smaller
    return (larger if above_half else smaller), (smaller if above_half else larger)


@kernel
def activate(x, size):
    """GELU in place."""
    separate()
    for i in range(np.uintp(size)):
        x[i] = gelu(x[i])


@kernel
def copy(y, x):
    """Copy x to y."""
    separate()
    for i in range(np.uintp(x.size)):
        y[i] = x[i]


def layers(address):
    """A step of layers without anything between them, as a C function of a call."""
    call = carray(address, (WEIGHTS,), np.int64)
    count, hidden, batch = call[LAYERS], call[UNITS_OF_LAYER], call[BATCH]
    call = carray(address, (WEIGHTS + 2 * count,), np.int64)
    units = (2 if call[LAYER_KIND] == GRU else 3) * hidden
    logits, decay = np.empty(call[ROWS] * units, np.float32), np.empty(hidden, np.float32)
    present = min(1, call[RESET])
    unit = kernels.next_unit(call)
    while unit < call[UNITS]:
        first = unit * call[ROWS]
        rows = min(call[ROWS], batch - first)
        reset = carray(pointer(call[RESET] + present * first), (present * rows,), np.bool_)
        features = call[FEATURES]
        x = array(call[X], first * features, rows * features)
        for i in range(count):
            linear(logits, x, call[WEIGHTS + 2 * i], call[WEIGHTS + 2 * i + 1], features, units, rows, False)
            h = array(call[STATE], (i * batch + first) * hidden, rows * hidden)
            x, features = array(call[NEW_STATE], (i * batch + first) * hidden, rows * hidden), hidden
            identity, signed = call[LAYER_IDENTITY], call[LAYER_SIGNED]
            recurrence(x, h, logits, decay, call[LAYER_KIND], identity, signed, rows, hidden, reset)
        unit = kernels.next_unit(call)


def blocks(address):
    """A step of residual blocks and a norm, as a C function of a call."""
    call = carray(address, (BLOCKS,), np.int64)
    depth, dim, batch = call[DEPTH], call[DIM], call[BATCH]
    call = carray(address, (BLOCKS + depth * BLOCK_FIELDS,), np.int64)
    widest, most_hidden = 0, 0
    for i in range(depth):
        b = BLOCKS + i * BLOCK_FIELDS
        widest = max(widest, 3 * call[b + HIDDEN], call[b + MLP_HIDDEN])
        most_hidden = max(most_hidden, call[b + HIDDEN])
    normed, decay = np.empty(call[ROWS] * dim, np.float32), np.empty(most_hidden, np.float32)
    wide = np.empty(call[ROWS] * widest, np.float32)
    present = min(1, call[RESET])
    unit = kernels.next_unit(call)
    while unit < call[UNITS]:
        first = unit * call[ROWS]
        rows = min(call[ROWS], batch - first)
        y = array(call[Y], first * dim, rows * dim)
        copy(y, array(call[X], first * dim, rows * dim))
        reset = carray(pointer(call[RESET] + present * first), (present * rows,), np.bool_)
        for i in range(depth):
            b = BLOCKS + i * BLOCK_FIELDS
            hidden, mlp_hidden = call[b + HIDDEN], call[b + MLP_HIDDEN]
            layer_norm(normed, y, array(call[b + BLOCK_NORM], 0, dim), array(call[b + BLOCK_NORM_BIAS], 0, dim), rows)
            convolve(normed, call[b + KERNEL_SIZE :], dim, first, rows, reset)
            units = (2 if call[b + KIND] == GRU else 3) * hidden
            linear(wide, normed, call[b + LOGITS], call[b + LOGITS_BIAS], dim, units, rows, False)
            h = array(call[b + H], first * hidden, rows * hidden)
            new_h = array(call[b + NEW_H], first * hidden, rows * hidden)
            recurrence(new_h, h, wide, decay, call[b + KIND], call[b + IDENTITY], call[b + SIGNED], rows, hidden, reset)
            linear(y, new_h, call[b + OUT], call[b + OUT_BIAS], hidden, dim, rows, True)
            if mlp_hidden > 0:
                layer_norm(normed, y, array(call[b + MLP_NORM], 0, dim), array(call[b + MLP_NORM_BIAS], 0, dim), rows)
                convolve(normed, call[b + MLP_KERNEL_SIZE :], dim, first, rows, reset)
                linear(wide, normed, call[b + UP], call[b + UP_BIAS], dim, mlp_hidden, rows, False)
                activate(wide, rows * mlp_hidden)
                linear(y, wide, call[b + DOWN], call[b + DOWN_BIAS], mlp_hidden, dim, rows, True)
        layer_norm(y, y, array(call[NORM], 0, dim), array(call[NORM_BIAS], 0, dim), rows)
        unit = kernels.next_unit(call)


@functools.cache
def compiled(entry):
    """The C function of ``layers`` or ``blocks``; its ``address`` is valid as long as the result exists."""
    # Numba's cache notices changes in the file of the entry alone, so its name says which elements it was compiled of.
    entry.__qualname__ = f"{entry.__name__}_step_{os.stat(kernels.__file__).st_mtime_ns:x}"
    return cfunc(types.void(types.voidptr), cache=kernels.CACHE, error_model="numpy")(entry)
