"""The scan's loops for CPUs, compiled by Numba: fused with gate and activation, vectorised, without Python.

All of it is one file because Numba's cache of a compiled entry notices changes only in the file that holds the entry.

A kernel passes over the length once for a block of neighbouring channels whose state stays in the first-level cache,
so that it reads and writes each sequence once. The exponential is written out because LLVM vectorises the loops only
then. A sequence is a flat array and its strides from row to row and from step to step; the dtype of the array is that
of the sequence, uint16 stands for the bits of bfloat16. The forget gate f is None for minGRU, which is compiled
separately.

``order`` lists the steps in the order of the scan. It is an array, not a range, because for offsets that it can predict
LLVM checks once, for all steps, that the arrays do not overlap, and then does not vectorise reversed scans.

A call of a kernel is an array of integers: the number of the next unit of work, which the threads take one after
another until none is left, sizes and options at the indices named below, and the operands, each an address and two
strides.
"""

import functools
import warnings

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

LINEAR, POSITIVE, IDENTITY = 0, 1, 2
PREFETCH_STEPS = 4  # steps between prefetching a row and reading it
BLOCK = 256  # most channels that a kernel processes at once: state and rows fit into the first-level cache
UNITS, BATCH, LENGTH, DIM, CHUNKS, BLOCK_WIDTH, KIND, BACKWARD, RESET, ORDER, OPERANDS = range(
    1, 12
)  # indices into a call

# exp(r) on |r| ≤ ½·ln 2, by relative minimax fit of degree 6 (error 2e-9, far below float32's)
P0, P1, P2, P3 = np.float32(1.0), np.float32(1.0), np.float32(0.49999991), np.float32(0.16666420)
P4, P5, P6 = np.float32(0.041668225), np.float32(0.0083748158), np.float32(0.0013836846)
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
TO_INTEGER = np.float32(12582912.0)  # 1.5 · 2²³: adding it rounds a float32 to a whole number
SMALLEST = np.float32(-87.0)  # exp(-87) is the last that is not denormal
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)  # exact, and promoted to float64 by a float64


def _cache_is_writable() -> bool:
    """Whether compiled kernels can be cached: next to this file, or in the user's cache folder."""
    try:
        njit(cache=True)(lambda: None)
    except RuntimeError as error:
        warnings.warn(
            f"compiled kernels cannot be cached ({error}), so that every process spends seconds on compiling them: "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
        return False
    return True


# Of fast-math only fused multiply-add, and not in the functions inside loops, where it would undo the compensation of
# rounding errors. These are inlined because LLVM does not vectorise a loop that contains a call.
kernel = njit(fastmath={"contract"}, error_model="numpy")
element = njit(forceinline=True, error_model="numpy")
CACHE = _cache_is_writable()


@element
def at(sequence, row, t, channel):
    """The index of ``channel`` of step ``t`` of ``row``."""
    return 0 if sequence is None else row * sequence[1][0] + t * sequence[1][1] + channel


def load(sequence, i):
    """Element ``i`` in the type of the state."""


@overload(load, jit_options={"forceinline": True})
def _load(sequence, i):
    if str(sequence[0].dtype) == "uint16":
        return lambda sequence, i: np.uint32(np.uint32(sequence[0][np.uintp(i)]) << np.uint32(16)).view(np.float32)
    return lambda sequence, i: sequence[0][np.uintp(i)]


def store(sequence, i, x):
    """Round ``x`` to the type of the sequence and write it."""


@overload(store, jit_options={"forceinline": True})
def _store(sequence, i, x):
    if str(sequence[0].dtype) != "uint16":

        def keep(sequence, i, x):
            sequence[0][np.uintp(i)] = x

        return keep

    def round_to_even(sequence, i, x):
        bits = np.float32(x).view(np.uint32)
        even = np.uint32(
            np.uint32(bits + np.uint32(0x7FFF)) + np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        )
        sequence[0][np.uintp(i)] = np.uint16(np.uint32(even if x == x else np.uint32(0x7FC00000)) >> np.uint32(16))

    return round_to_even


@intrinsic
def prefetch(context, array, i):
    """Prefetch element ``i`` into the cache; an index out of range has no effect."""

    def generate(context, builder, signature, arguments):
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        number = ir.IntType(32)
        signature_type = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        instruction = cgutils.get_or_insert_function(builder.module, signature_type, "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        builder.call(instruction, [address, number(0), number(2), number(1)])  # to read, into the second level, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@element
def prefetch_step(sequence, row, t, channel, width):
    """Prefetch ``width`` channels of a step; on its own the hardware predicts ascending addresses only."""
    if sequence is not None:
        for d in range(0, width, 64 // sequence[0].itemsize):  # a cache line has 64 bytes
            prefetch(sequence[0], at(sequence, row, t, channel + d))


def exp(x):
    """The exponential of x ≤ 0 or NaN, to one unit in the last place."""


@overload(exp, jit_options={"forceinline": True, "fastmath": {"contract"}})
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


@element
def sigmoid(x):
    """σ(x), without overflow."""
    e = exp(-abs(x))
    return (ONE if x >= 0 else e) / (ONE + e)


@element
def positive(v):
    """The paper's g(v)."""
    return v + HALF if v >= 0 else sigmoid(v)


@element
def positive_slope(v, c):
    """g′(v), given c = g(v)."""
    return ONE if v >= 0 else c * (ONE - c)


@element
def gate(k, f, n):
    """The smaller of z and 1 − z, and whether z is at least ½; z = σ(k) or, with f, σ(k) / (σ(k) + σ(f[n]))."""
    numerator, denominator, above_half = gate_parts(k, f, n)
    return numerator / denominator, above_half


@element
def gate_and_positive(k, f, n, v):
    """``gate`` and ``positive`` with one division for both: a division takes as long as all other instructions."""
    numerator, denominator, above_half = gate_parts(k, f, n)
    e = exp(-abs(v))
    scale = ONE / (denominator * (ONE + e))
    return numerator * (ONE + e) * scale, above_half, v + HALF if v >= 0 else e * denominator * scale


@element
def gate_parts(k, f, n):
    """Numerator and denominator of the smaller of z and 1 − z, and whether z is at least ½; see ``gate``."""
    if f is None:
        e = exp(-abs(k))
        return e, ONE + e, k >= 0
    x = load(f, n)  # z : 1 − z  =  (1 + e^−x) : (1 + e^−k), without overflow
    to_k, to_f = ONE + exp(-abs(x)), ONE + exp(-abs(k))
    difference = (ZERO if x >= 0 else -x) - (ZERO if k >= 0 else -k)
    scale = exp(-abs(difference))
    to_k, to_f = (to_k if difference >= 0 else to_k * scale), (to_f * scale if difference >= 0 else to_f)
    above_half = to_k >= to_f
    return to_f if above_half else to_k, to_k + to_f, above_half


@element
def interpolate(smaller, above_half, c, h, error):
    """The next state h + z·(c − h), computed from the nearer of h and c, and its rounding error.

    ``error`` is the rounding error of ``h``, for which it compensates.
    """
    difference = (c - h) - error
    base = c if above_half else h
    u = (-smaller if above_half else smaller) * difference + (ZERO if above_half else error)
    new = base + u
    return new, u - (new - base)


@element
def store_gates(dk, p, df, r, slope, k, i, f, n):
    """Write the gradients of k[i] and f[n], given that of the logit of z, which is log σ(k[i]) − log σ(f[n])."""
    if f is None:
        store(dk, p, slope)
    else:
        store(dk, p, slope * sigmoid(-load(k, i)))
        store(df, r, -slope * sigmoid(-load(f, n)))


@intrinsic
def prefer_wide_vectors(context):
    """Prefer 512-bit vectors if the processor has them; LLVM often uses 256 bits unless a function asks for more."""

    def generate(context, builder, signature, arguments):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # llvmlite's own add lacks this one
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def next_unit(context, call):
    """The number of the next unit of work; no other thread gets the same one."""

    def generate(context, builder, signature, arguments):
        data = make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(data.type.pointee, 1), "monotonic")

    return types.int64(call), generate


@kernel
def unit_range(call, unit):
    """A unit of work: row, first channel, number of channels, chunk of the length, and where that begins and ends."""
    dim, block, length, chunks = call[DIM], call[BLOCK_WIDTH], call[LENGTH], call[CHUNKS]
    blocks = (dim + block - 1) // block
    row, remainder = unit // (blocks * chunks), unit % (blocks * chunks)
    first, chunk = remainder // chunks * block, remainder % chunks
    return row, first, min(block, dim - first), chunk, length * chunk // chunks, length * (chunk + 1) // chunks


@kernel
def forward(call, k, v, f, h, starts, reset, order):
    """Write every state to ``h``, from the states ``starts`` before each chunk, which become those after it."""
    prefer_wide_vectors()
    kind, units = call[KIND], call[UNITS]
    state = np.empty(BLOCK, starts.dtype)
    error = np.empty(BLOCK, starts.dtype)  # the rounding error of the state: long memories stay exact
    unit = next_unit(call)
    while unit < units:
        row, first, width, chunk, begin, end = unit_range(call, unit)
        state[:width] = starts[row, chunk, first : first + width]
        error[:width] = 0
        for step in range(begin, end):
            t = order[step]
            i, j = at(k, row, t, first), at(v, row, t, first)
            n, o = at(f, row, t, first), at(h, row, t, first)
            later_t = order[min(step + PREFETCH_STEPS, end - 1)]
            if later_t < t:
                prefetch_step(k, row, later_t, first, width)
                prefetch_step(v, row, later_t, first, width)
                prefetch_step(f, row, later_t, first, width)
                prefetch_step(h, row, later_t, first, width)
            if reset.size > 0 and reset[row, t]:
                state[:width] = 0
                error[:width] = 0
            if kind == LINEAR:
                for d in range(width):
                    state[d] = load(k, i + d) * state[d] + load(v, j + d)
                    store(h, o + d, state[d])
            elif kind == POSITIVE:
                for d in range(width):
                    smaller, above_half, c = gate_and_positive(load(k, i + d), f, n + d, load(v, j + d))
                    state[d], error[d] = interpolate(smaller, above_half, c, state[d], error[d])
                    store(h, o + d, state[d])
            else:
                for d in range(width):
                    smaller, above_half = gate(load(k, i + d), f, n + d)
                    state[d], error[d] = interpolate(smaller, above_half, load(v, j + d), state[d], error[d])
                    store(h, o + d, state[d])
        starts[row, chunk, first : first + width] = state[:width]
        unit = next_unit(call)


@kernel
def ends(call, k, v, f, product, end, reset, order):
    """Write how each chunk maps the state before it to that after it: times ``product``, plus ``end``.

    With BACKWARD the steps run backward and v is the gradient of every state: then the map is from the gradient of the
    chunk's last state, which comes from later chunks, to the gradient that the chunk passes to earlier ones.
    """
    prefer_wide_vectors()
    kind, units, back = call[KIND], call[UNITS], call[BACKWARD] != 0
    scratch = np.empty((4, BLOCK), end.dtype)
    state, error, decay, decay_error = scratch[0], scratch[1], scratch[2], scratch[3]  # with their rounding errors
    unit = next_unit(call)
    while unit < units:
        row, first, width, chunk, begin, stop = unit_range(call, unit)
        scratch[:] = 0
        decay[:width] = 1
        for step in range(begin, stop):
            t = order[begin + stop - 1 - step if back else step]
            i, j, n = at(k, row, t, first), at(v, row, t, first), at(f, row, t, first)
            is_reset = reset.size > 0 and reset[row, t]
            if is_reset and not back:
                scratch[:] = 0
            if kind == LINEAR:
                for d in range(width):
                    a, x = load(k, i + d), load(v, j + d)
                    state[d] = a * (state[d] + x) if back else a * state[d] + x
                    decay[d] *= a
            else:
                for d in range(width):
                    smaller, above_half = gate(load(k, i + d), f, n + d)
                    x = load(v, j + d)
                    if back:
                        total = state[d] + x
                        state[d] = smaller * total if above_half else total - smaller * total
                    else:
                        c = positive(x) if kind == POSITIVE else x
                        state[d], error[d] = interpolate(smaller, above_half, c, state[d], error[d])
                    decay[d], decay_error[d] = interpolate(smaller, above_half, ZERO, decay[d], decay_error[d])
            if is_reset and back:
                scratch[:] = 0
        product[row, chunk, first : first + width] = decay[:width]
        end[row, chunk, first : first + width] = state[:width]
        unit = next_unit(call)


@kernel
def backward(call, g, k, v, f, h, dk, dv, df, initial, flows, reset, order):
    """Write the gradients, from the last step of each chunk to its first.

    ``flows`` holds the gradient with respect to the last state of each chunk from later chunks, and is overwritten with
    the gradient that the chunk passes to earlier ones.
    """
    prefer_wide_vectors()
    kind, units = call[KIND], call[UNITS]
    # Slices of one array: LLVM vectorises no loop over many arrays of which it does not know that they do not overlap.
    scratch = np.empty(4 * BLOCK, flows.dtype)
    flow = scratch[:BLOCK]  # a_{t+1}·G_{t+1}, the gradient of h_t from later steps
    before = scratch[BLOCK : 2 * BLOCK]  # h_{t-1}
    through, to_gate = scratch[2 * BLOCK : 3 * BLOCK], scratch[3 * BLOCK :]  # G·z, G·z·(1 − z)
    unit = next_unit(call)
    while unit < units:
        row, first, width, chunk, begin, end = unit_range(call, unit)
        flow[:width] = flows[row, chunk, first : first + width]
        for step in range(end - 1, begin - 1, -1):
            t = order[step]
            m, n, r = at(g, row, t, first), at(f, row, t, first), at(df, row, t, first)
            i, j, p, q = at(k, row, t, first), at(v, row, t, first), at(dk, row, t, first), at(dv, row, t, first)
            later_t = order[max(step - PREFETCH_STEPS, begin)]
            prefetch_step(g, row, later_t, first, width)
            prefetch_step(k, row, later_t, first, width)
            prefetch_step(v, row, later_t, first, width)
            prefetch_step(h, row, later_t, first, width)
            prefetch_step(dk, row, later_t, first, width)
            prefetch_step(dv, row, later_t, first, width)
            prefetch_step(f, row, later_t, first, width)
            prefetch_step(df, row, later_t, first, width)
            is_reset = reset.size > 0 and reset[row, t]
            if is_reset:
                before[:width] = 0
            elif step == 0:
                before[:width] = initial[row, 0, first : first + width]
            else:
                o = at(h, row, order[step - 1], first)
                for d in range(width):
                    before[d] = load(h, o + d)
            if kind == LINEAR:
                for d in range(width):
                    total = load(g, m + d) + flow[d]
                    through[d] = total
                    flow[d] = load(k, i + d) * total
                for d in range(width):
                    store(dk, p + d, through[d] * before[d])
                    store(dv, q + d, through[d])
            else:
                for d in range(width):
                    total = load(g, m + d) + flow[d]
                    smaller, above_half = gate(load(k, i + d), f, n + d)
                    near = smaller * total
                    far = total - near
                    through[d], flow[d] = (far if above_half else near), (near if above_half else far)
                    to_gate[d] = near - smaller * near
                if kind == POSITIVE:
                    for d in range(width):
                        x = load(v, j + d)
                        c = positive(x)
                        to_gate[d] *= c - before[d]
                        store(dv, q + d, through[d] * positive_slope(x, c))
                else:
                    for d in range(width):
                        to_gate[d] *= load(v, j + d) - before[d]
                        store(dv, q + d, through[d])
                for d in range(width):
                    store_gates(dk, p + d, df, r + d, to_gate[d], k, i + d, f, n + d)
            if is_reset:
                flow[:width] = 0
        flows[row, chunk, first : first + width] = flow[:width]
        unit = next_unit(call)


@intrinsic
def pointer(context, address):
    """The address as a pointer."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@element
def sequence(call, number, dtype):
    """An operand of the call as a sequence."""
    i = OPERANDS + 3 * number
    return carray(pointer(call[i]), (1,), dtype), (call[i + 1], call[i + 2])


@element
def optional(call, number, dtype, present):
    """An operand that is None where ``present`` is."""
    if present is None:
        return None
    return sequence(call, number, dtype)


@element
def states(call, number, chunks, dtype):
    """An operand with a state for every row, chunk and channel."""
    return carray(pointer(call[OPERANDS + 3 * number]), (call[BATCH], chunks, call[DIM]), dtype)


@element
def resets(call):
    """The resets of every row; an empty array if there are none."""
    present = min(1, call[RESET])
    return carray(pointer(call[RESET]), (present * call[BATCH], present * call[LENGTH]), np.bool_)


@element
def steps(call):
    """The steps in the order of the scan."""
    return carray(pointer(call[ORDER]), (call[LENGTH],), np.int64)


def forward_entry(dtype, wide, gates):
    """``forward`` as a C function of a call with the operands k, v, f, h, starts."""

    def entry(address):
        prefer_wide_vectors()  # also in the functions that are inlined here
        call = carray(address, (OPERANDS + 15,), np.int64)
        k, v, f = sequence(call, 0, dtype), sequence(call, 1, dtype), optional(call, 2, dtype, gates)
        starts = states(call, 4, call[CHUNKS], wide)
        forward(call, k, v, f, sequence(call, 3, dtype), starts, resets(call), steps(call))

    return entry


def ends_entry(dtype, wide, gates):
    """``ends`` as a C function of a call with the operands k, v, f, product, end."""

    def entry(address):
        prefer_wide_vectors()  # also in the functions that are inlined here
        call = carray(address, (OPERANDS + 15,), np.int64)
        k, v, f = sequence(call, 0, dtype), sequence(call, 1, dtype), optional(call, 2, dtype, gates)
        product, end = states(call, 3, call[CHUNKS], wide), states(call, 4, call[CHUNKS], wide)
        ends(call, k, v, f, product, end, resets(call), steps(call))

    return entry


def backward_entry(dtype, wide, gates):
    """``backward`` as a C function of a call with the operands g, k, v, f, h, ∂k, ∂v, ∂f, initial, flows."""

    def entry(address):
        prefer_wide_vectors()  # also in the functions that are inlined here
        call = carray(address, (OPERANDS + 30,), np.int64)
        g, k, v, f = (
            sequence(call, 0, dtype),
            sequence(call, 1, dtype),
            sequence(call, 2, dtype),
            optional(call, 3, dtype, gates),
        )
        dk, dv, df = sequence(call, 5, dtype), sequence(call, 6, dtype), optional(call, 7, dtype, gates)
        initial, flows = states(call, 8, 1, wide), states(call, 9, call[CHUNKS], wide)
        backward(call, g, k, v, f, sequence(call, 4, dtype), dk, dv, df, initial, flows, resets(call), steps(call))

    return entry


@functools.cache
def compiled(entry, stored, gates):
    """A kernel's C function; its ``address`` is valid as long as the result exists.

    Args:
        entry: One of the three functions above.
        stored: Type of the sequences: float32, float64, or uint16 for bfloat16.
        gates: True if there is a forget gate, else None.
    """
    function = entry(getattr(np, stored), np.float64 if stored == "float64" else np.float32, gates)
    # A file of its own in Numba's cache: processes that compile different kernels at once would mix them up in one.
    function.__qualname__ = f"{entry.__name__}_{stored}" + ("_gates" if gates else "")
    return cfunc(types.void(types.voidptr), cache=CACHE, error_model="numpy")(function)
