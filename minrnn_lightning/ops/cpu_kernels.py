"""The scan's loops for CPUs, compiled by Numba: fused with gate and activation, vectorised, free of the GIL.

A kernel walks the length once for a block of neighbouring channels whose state stays in the first-level cache, so that
it reads and writes each sequence once. The exponential is written out because only then does LLVM vectorise the loops.
Types are told apart by the arrays; uint16 stands for the bits of bfloat16. A sequence comes as a flat array and its
strides from row to row and from step to step.

``order`` lists the steps in the order of the scan. It is an array, not a range, because with offsets that it foresees
LLVM checks once for all steps that the arrays do not overlap, and gives up on every walk against the time.
"""

import numpy as np
from numba import njit
from numba.extending import overload

LINEAR, POSITIVE, IDENTITY = 0, 1, 2
BLOCK = 256  # channels that a kernel carries at once, at most: state and rows fit the first-level cache

# exp(r) on |r| ≤ ½·ln 2, by relative minimax fit of degree 6 (error 2e-9, far below float32's)
P0, P1, P2, P3 = np.float32(1.0), np.float32(1.0), np.float32(0.49999991), np.float32(0.16666420)
P4, P5, P6 = np.float32(0.041668225), np.float32(0.0083748158), np.float32(0.0013836846)
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
TO_INTEGER = np.float32(12582912.0)  # 1.5 · 2²³: adding it rounds a float32 to a whole number
SMALLEST = np.float32(-87.0)  # exp(-87) is the last that is not denormal


def kernel(function):
    """Compile without the GIL and with fused multiply-add, nothing else of fast-math; keep the result on disk."""
    return njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")(function)


def load(array, i):
    """Element ``i`` in the type of the state."""


def store(array, i, x):
    """Round ``x`` to the type of ``array`` and write it."""


def exp(x):
    """The exponential of x ≤ 0 or NaN, to one unit in the last place."""


def sigmoid(x):
    """σ(x), without overflow."""


def interpolate(k, c, h, rest):
    """The next state h + σ(k)·(c − h), from whichever end is nearer, and what rounding cuts off it.

    ``rest`` is what rounding cut off ``h``.
    """


def gate_backward(k, g):
    """g·σ(k), g·σ′(k) and g·(1 − σ(k))."""


def positive(v):
    """The paper's g(v)."""


def positive_slope(v, c):
    """g′(v), given c = g(v)."""


@overload(load)
def _load(array, i):
    if str(array.dtype) == "uint16":
        return lambda array, i: np.uint32(np.uint32(array[np.uintp(i)]) << np.uint32(16)).view(np.float32)
    return lambda array, i: array[np.uintp(i)]


@overload(store)
def _store(array, i, x):
    if str(array.dtype) != "uint16":

        def keep(array, i, x):
            array[np.uintp(i)] = x

        return keep

    def round_to_even(array, i, x):
        bits = np.float32(x).view(np.uint32)
        even = np.uint32(
            np.uint32(bits + np.uint32(0x7FFF)) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        )
        array[np.uintp(i)] = np.uint16(np.uint32(even if x == x else np.uint32(0x7FC00000)) >> np.uint32(16))

    return round_to_even


@overload(exp)
def _exp(x):
    if str(x) == "float64":
        return lambda x: np.exp(x)

    def exp(x):
        x = SMALLEST if x < SMALLEST else x
        shifted = x * LOG2_E + TO_INTEGER
        n = shifted - TO_INTEGER
        r = (x - n * LN2_HIGH) - n * LN2_LOW
        p = P0 + r * (P1 + r * (P2 + r * (P3 + r * (P4 + r * (P5 + r * P6)))))
        bits = np.int32(np.int32(np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23))
        return p * np.int32(bits).view(np.float32)

    return exp


@overload(sigmoid)
def _sigmoid(x):
    one = np.float64(1) if str(x) == "float64" else np.float32(1)

    def sigmoid(x):
        e = exp(-abs(x))
        return (one if x >= 0 else e) / (one + e)

    return sigmoid


@overload(interpolate)
def _interpolate(k, c, h, rest):
    zero, one = (np.float64(0), np.float64(1)) if str(k) == "float64" else (np.float32(0), np.float32(1))

    def interpolate(k, c, h, rest):
        e = exp(-abs(k))
        smaller = e / (one + e)
        away = (c - h) - rest
        base = c if k >= 0 else h
        u = (-smaller if k >= 0 else smaller) * away + (zero if k >= 0 else rest)
        new = base + u
        return new, u - (new - base)

    return interpolate


@overload(gate_backward)
def _gate_backward(k, g):
    one = np.float64(1) if str(k) == "float64" else np.float32(1)

    def gate_backward(k, g):
        e = exp(-abs(k))
        larger = one / (one + e)
        smaller = e * larger
        near, far = smaller * g, g - smaller * g
        return far if k >= 0 else near, larger * near, near if k >= 0 else far

    return gate_backward


@overload(positive)
def _positive(v):
    half = np.float64(0.5) if str(v) == "float64" else np.float32(0.5)
    return lambda v: v + half if v >= 0 else sigmoid(v)


@overload(positive_slope)
def _positive_slope(v, c):
    one = np.float64(1) if str(v) == "float64" else np.float32(1)
    return lambda v, c: one if v >= 0 else c * (one - c)


@kernel
def offset(strides, row, t, channel):
    """Where ``channel`` of step ``t`` of ``row`` is."""
    return row * strides[0] + t * strides[1] + channel


@kernel
def forward(k, k_strides, v, v_strides, h, h_strides, initial, reset, order, kind, block, lo, hi):
    """Write every state of the units ``lo`` … ``hi`` to ``h``; a unit is a block of channels of one row."""
    dim = initial.shape[1]
    state = np.empty(block, initial.dtype)
    rest = np.empty(block, initial.dtype)  # what rounding has cut off the state: long memories stay exact
    blocks = (dim + block - 1) // block
    for unit in range(lo, hi):
        row, first = unit // blocks, unit % blocks * block
        width = min(block, dim - first)
        state[:width] = initial[row, first : first + width]
        rest[:width] = 0
        for t in order:
            i, j = offset(k_strides, row, t, first), offset(v_strides, row, t, first)
            o = offset(h_strides, row, t, first)
            if reset.size > 0 and reset[row, t]:
                state[:width] = 0
                rest[:width] = 0
            if kind == LINEAR:
                for d in range(width):
                    state[d] = load(k, i + d) * state[d] + load(v, j + d)
                    store(h, o + d, state[d])
            elif kind == POSITIVE:
                for d in range(width):
                    state[d], rest[d] = interpolate(load(k, i + d), positive(load(v, j + d)), state[d], rest[d])
                    store(h, o + d, state[d])
            else:
                for d in range(width):
                    state[d], rest[d] = interpolate(load(k, i + d), load(v, j + d), state[d], rest[d])
                    store(h, o + d, state[d])


@kernel
def backward(
    g,
    g_strides,
    k,
    k_strides,
    v,
    v_strides,
    h,
    h_strides,
    dk,
    dk_strides,
    dv,
    dv_strides,
    initial,
    d_initial,
    reset,
    order,
    kind,
    block,
    lo,
    hi,
):
    """Write the gradients of the units ``lo`` … ``hi``, from the last step of the scan to its first."""
    dim = initial.shape[1]
    # Parts of one array: LLVM vectorises no loop over many arrays of which it does not know that they do not overlap.
    kept = np.empty(4 * BLOCK, initial.dtype)
    flow, before = kept[:BLOCK], kept[BLOCK : 2 * BLOCK]  # a_{t+1}·G_{t+1}, what reaches h_t from later steps; h_{t-1}
    through, to_gate = kept[2 * BLOCK : 3 * BLOCK], kept[3 * BLOCK :]  # G·z, G·z·(1 − z)
    blocks = (dim + block - 1) // block
    for unit in range(lo, hi):
        row, first = unit // blocks, unit % blocks * block
        width = min(block, dim - first)
        flow[:width] = 0
        for step in range(order.size - 1, -1, -1):
            t = order[step]
            n, i, j = (
                offset(g_strides, row, t, first),
                offset(k_strides, row, t, first),
                offset(v_strides, row, t, first),
            )
            p, q = offset(dk_strides, row, t, first), offset(dv_strides, row, t, first)
            cut = reset.size > 0 and reset[row, t]
            if cut:
                before[:width] = 0
            elif step == 0:
                before[:width] = initial[row, first : first + width]
            else:
                o = offset(h_strides, row, order[step - 1], first)
                for d in range(width):
                    before[d] = load(h, o + d)
            if kind == LINEAR:
                for d in range(width):
                    total = load(g, n + d) + flow[d]
                    through[d] = total
                    flow[d] = load(k, i + d) * total
                for d in range(width):
                    store(dk, p + d, through[d] * before[d])
                    store(dv, q + d, through[d])
            else:
                for d in range(width):
                    total = load(g, n + d) + flow[d]
                    through[d], to_gate[d], flow[d] = gate_backward(load(k, i + d), total)
                if kind == POSITIVE:
                    for d in range(width):
                        x = load(v, j + d)
                        c = positive(x)
                        store(dk, p + d, to_gate[d] * (c - before[d]))
                        store(dv, q + d, through[d] * positive_slope(x, c))
                else:
                    for d in range(width):
                        store(dk, p + d, to_gate[d] * (load(v, j + d) - before[d]))
                        store(dv, q + d, through[d])
            if cut:
                flow[:width] = 0
        d_initial[row, first : first + width] = flow[:width]
