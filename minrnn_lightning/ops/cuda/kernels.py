"""The scan's Triton kernels for GPUs: fused with gate and activation, in tiles over (length, dim).

A step of the scan is the map h → a·h + u. The composition of two maps is again such a map, so that a tile computes all
its states at once (``tl.associative_scan``) and passes the last one to the next tile. Besides a, every map has
z = 1 − a: for a near 1, a float32 has only the leading digits of the difference from 1, and z has all of them.

A program is one warp, and a lane has whole columns of a tile, so that the scan of a tile is a loop over registers, with
one map applied per step and nothing exchanged between lanes. What Triton would choose, neighbouring steps in different
lanes, takes two to three times as many instructions. Few steps of few channels are in flight that way; therefore each
tile is loaded while the one before it is computed, and the length is divided into many chunks (``launch``).

A program runs over one chunk of the length, for one row and one block of channels. If it is given the state before its
chunk, it writes every state; otherwise it writes the map of the whole chunk, from which ``carry`` computes the state
before every chunk. Step j of the scan is at position t = j of the sequence, or at t = length − 1 − j if reversed.

Only features that Triton has on every device are used, and only functions that are built into ``triton.language``:
these can also be interpreted in a process that has imported Triton as a compiler.
"""

import torch
import triton
import triton.language as tl
from triton.runtime import Autotuner

from minrnn_lightning.ops.cuda.compilers import TRITON

if tuple(map(int, triton.__version__.split(".")[:2])) < tuple(map(int, TRITON[0].split("."))):
    raise ImportError(f"it is older than {TRITON[0]}")

LANES = tl.constexpr(32 if torch.version.hip is None else 64)  # of a warp

# The most that a thread may use: by default, NVIDIA's assembler spills some registers to fit in one more program.
REGISTERS = 255 if torch.version.hip is None else None


@triton.jit
def advance(a, z, u, c, h, low):
    """Apply the map h → a·h + (u + c) to the state h + low, with z or a, whichever is more accurate.

    The sum of two numbers is that of compensated summation: without what each step rounds away, the error would grow
    with the number of steps that the state remembers. Where ``low`` is not used, the compiler leaves its sum out.
    A decay of zero, as at a reset, discards the state, even an infinity or NaN.
    """
    change = u - z * h
    near_1 = tl.abs(z) < 0.5
    new = tl.where(near_1, h + change, a * h + u)
    rounded_away = tl.where(near_1, (h - new) + change, 0)
    return tl.where(a == 0, u, new), tl.where(a == 0, c, a * low + (c + rounded_away))


@triton.jit
def compose(a1, z1, u1, c1, a2, z2, u2, c2):
    """The composition of two maps: the first, then the second."""
    forgets = a2 == 0
    z = z1 + a1 * z2
    a = tl.where(tl.abs(z) < 0.5, 1 - z, a1 * a2)
    u, c = advance(a2, z2, u2, c2, u1, c1)
    return tl.where(forgets, a2, a), tl.where(forgets, z2, z), u, c


@triton.jit
def begin(a, z, u, c, is_first, h, low):
    """The updates u + c of a tile whose first map is applied to the state h + low before it already."""
    u_0, c_0 = advance(a, z, u, c, h, low)
    return tl.where(is_first, u_0, u), tl.where(is_first, c_0, c)


@triton.jit
def compose_with_before(a1, z1, u1, c1, p1, q1, r1, s1, a2, z2, u2, c2, p2, q2, r2, s2):
    """The same for steps of which each also has the map (p, q, r + s) of all steps before it."""
    a, z, u, c = compose(a1, z1, u1, c1, a2, z2, u2, c2)
    p, q, r, s = compose(a1, z1, u1, c1, p2, q2, r2, s2)
    return a, z, u, c, p, q, r, s


@triton.jit
def sigmoid(x):
    """σ(x), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1, e) / (1 + e)


@triton.jit
def gate(k, f):
    """1 − z and z of the gated scan: z = σ(k), or with a forget gate σ(k) / (σ(k) + σ(f)).

    Both sigmoids are divided by the larger one, so that the quotient is right where both underflow.
    """
    if f is None:
        e = tl.exp(-tl.abs(k))
        to_z, to_rest = tl.where(k >= 0, 1, e), tl.where(k >= 0, e, 1)
    else:
        d = tl.where(f < 0, -f, 0) - tl.where(k < 0, -k, 0)
        e = tl.exp(-tl.abs(d))
        to_z, to_rest = 1 + tl.exp(-tl.abs(f)), 1 + tl.exp(-tl.abs(k))
        to_z, to_rest = tl.where(d >= 0, to_z, to_z * e), tl.where(d >= 0, to_rest * e, to_rest)
    return to_rest / (to_z + to_rest), to_z / (to_z + to_rest)


@triton.jit
def activation(v, KIND: tl.constexpr):
    """The candidate state c(v)."""
    return tl.where(v >= 0, v + 0.5, sigmoid(v)) if KIND == "positive" else v


@triton.jit
def load(x, x_step, first, stop, length, here, REVERSE: tl.constexpr, BLOCK_L: tl.constexpr):
    """Load a tile of a sequence: the steps from ``first`` on, zeros from ``stop`` on, and the channels ``here``.

    x points to the channels at the first position of a row. It must not be None, which the callers check: up to Triton
    3.6 a function cannot return None from a branch.
    """
    j = first + tl.arange(0, BLOCK_L)
    at = x[None, :] + time(j, length, REVERSE)[:, None] * x_step
    return tl.load(at, mask=(j < stop)[:, None] & here[None, :], other=0)


@triton.jit
def load_reset(reset, row, first, stop, length, REVERSE: tl.constexpr, BLOCK_L: tl.constexpr):
    """Whether the sequence starts anew at the steps from ``first`` on."""
    j = first + tl.arange(0, BLOCK_L)
    return tl.load(reset + row * length + time(j, length, REVERSE), mask=j < stop, other=0)[:, None] != 0


@triton.jit
def time(j, length, REVERSE: tl.constexpr):
    """Position of step j of the scan in the sequence, in 64 bits, because offsets are made of it."""
    return (length - 1 - j if REVERSE else j).to(tl.int64)


@triton.jit
def program_range(length, dim, chunks, chunk_length, BLOCK_D: tl.constexpr):
    """Row, chunk and channels of this program, in 64 bits, because offsets are made of them, and its steps."""
    program = tl.program_id(0).to(tl.int64)
    blocks = (dim + BLOCK_D - 1) // BLOCK_D
    columns = tl.arange(0, BLOCK_D)
    if BLOCK_D >= LANES:
        columns = tl.max_contiguous(columns, BLOCK_D // LANES)  # of a lane: the compiler gives it whole columns
    channel = program % blocks * BLOCK_D + columns
    chunk = program // blocks % chunks
    start = chunk.to(tl.int32) * chunk_length
    return program // blocks // chunks, chunk, channel, start, tl.minimum(start + chunk_length, length)


@triton.jit
def load_state(x, index, dim, channel, STATE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a state from the contiguous (index, dim) tensor x; zeros if x is None."""
    if x is None:
        return tl.full([BLOCK_D], 0, STATE)
    else:
        return tl.load(x + index * dim + channel, mask=channel < dim, other=0)


@triton.jit
def exact(x, STATE: tl.constexpr):
    """Whether results are stored in the type of the state, whose last digits then matter."""
    return x.dtype.element_ty == STATE


@triton.jit
def add(x, y):
    """The operation of the reduction in ``last``."""
    return x + y


@triton.jit
def last(x, BLOCK_L: tl.constexpr):
    """The last row of a tile."""
    here = tl.arange(0, BLOCK_L) == BLOCK_L - 1
    return tl.reduce(tl.where(here[:, None], x, 0), 0, add)


@triton.jit
def store_map(ends, index, dim, channel, a, z, u):
    """Write the map of a chunk to (index, 3, dim)."""
    tl.store(ends + (index * 3 + 0) * dim + channel, a, mask=channel < dim)
    tl.store(ends + (index * 3 + 1) * dim + channel, z, mask=channel < dim)
    tl.store(ends + (index * 3 + 2) * dim + channel, u, mask=channel < dim)


def tuned(*tiles):
    """Choose the fastest tile of (steps, channels) once for each dim, kind and set of types."""
    configs = [
        triton.Config({"BLOCK_L": steps, "BLOCK_D": channels}, num_warps=1, maxnreg=REGISTERS)
        for steps, channels in tiles
    ]

    def choice(kernel):
        # Not made by triton.autotune: that of 3.2 drops do_bench, without which it needs a GPU where this is imported.
        return Autotuner(
            kernel,
            kernel.arg_names,
            configs,
            key=["dim", "KIND"],
            reset_to_zero=None,
            restore_value=None,
            prune_configs_by={"early_config_prune": fitting},
            do_bench=triton.testing.do_bench,
        )

    return choice


def fitting(configs, arguments, STATE, **options):
    """The tiles that fit into the registers: in float64 only the first of each list, the smallest one."""
    return configs[:1] if tl.float64 == STATE else configs


@tuned((4, 64), (8, 64))
@triton.jit(do_not_specialize=["length", "chunks", "chunk_length"])
def forward(
    k,
    k_row,
    k_step,
    v,
    v_row,
    v_step,
    f,
    f_row,
    f_step,
    reset,
    h,
    final,
    before,
    ends,
    length,
    dim,
    chunks,
    chunk_length,
    KIND: tl.constexpr,
    REVERSE: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write every state to h and the last one to ``final``, from the states ``before`` the chunks.

    Without h, write the maps of the chunks to ``ends``.
    """
    row, chunk, channel, start, stop = program_range(length, dim, chunks, chunk_length, BLOCK_D)
    here = channel < dim
    state, low = load_state(before, row * chunks + chunk, dim, channel, STATE, BLOCK_D), tl.full([BLOCK_D], 0, STATE)
    chunk_a, chunk_z = low + 1, low
    k, v = k + row * k_row + channel, v + row * v_row + channel
    next_k = load(k, k_step, start, stop, length, here, REVERSE, BLOCK_L)
    next_v = load(v, v_step, start, stop, length, here, REVERSE, BLOCK_L)
    if f is not None:
        f = f + row * f_row + channel
        next_f = load(f, f_step, start, stop, length, here, REVERSE, BLOCK_L)
    for first in tl.range(start, stop, BLOCK_L):
        k_, v_ = next_k.to(STATE), next_v.to(STATE)
        f_ = None if f is None else next_f.to(STATE)
        next_k = load(k, k_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        next_v = load(v, v_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        if f is not None:
            next_f = load(f, f_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        a, z = (k_, 1 - k_) if KIND == "linear" else gate(k_, f_)
        u = v_ if KIND == "linear" else z * activation(v_, KIND)
        if reset is not None:
            cut = load_reset(reset, row, first, stop, length, REVERSE, BLOCK_L)
            a, z = tl.where(cut, 0, a), tl.where(cut, 1, z)
        j = first + tl.arange(0, BLOCK_L)
        inside = (j < stop)[:, None] & here[None, :]
        a, z, u = tl.where(inside, a, 1), tl.where(inside, z, 0), tl.where(inside, u, 0)
        c = tl.full([BLOCK_L, BLOCK_D], 0, STATE)
        if h is None:
            a, z, u, c = tl.associative_scan((a, z, u, c), 0, compose)
            a, z, u, c = last(a, BLOCK_L), last(z, BLOCK_L), last(u, BLOCK_L), last(c, BLOCK_L)
            chunk_a, chunk_z, state, low = compose(chunk_a, chunk_z, state, low, a, z, u, c)
        else:
            u, c = begin(a, z, u, c, (j == first)[:, None], state[None, :], low[None, :])
            a, z, states, c = tl.associative_scan((a, z, u, c), 0, compose)
            state = last(states, BLOCK_L)
            if exact(h, STATE):
                low = last(c, BLOCK_L)
                states += c
            at = h + (row * length + time(j, length, REVERSE)[:, None]) * dim + channel[None, :]
            tl.store(at, states.to(h.dtype.element_ty), mask=inside)
    if h is None:
        store_map(ends, row * chunks + chunk, dim, channel, chunk_a, chunk_z, state + low)
    elif stop == length:
        tl.store(final + row * dim + channel, state + low, mask=here)


@triton.jit(do_not_specialize=["chunks"])
def carry(
    ends,
    initial,
    before,
    chunks,
    dim,
    STATE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the state before every chunk, from the maps of the chunks."""
    row, _, channel, start, stop = program_range(chunks, dim, 1, chunks, BLOCK_D)
    state, low = load_state(initial, row, dim, channel, STATE, BLOCK_D), tl.full([BLOCK_D], 0, STATE)
    tl.store(before + row * chunks * dim + channel, state, mask=channel < dim)
    for first in tl.range(start, stop, BLOCK_L):
        chunk = first + tl.arange(0, BLOCK_L)
        inside = (chunk < chunks)[:, None] & (channel < dim)[None, :]
        index = (row * chunks + chunk)[:, None]
        a = tl.load(ends + (index * 3 + 0) * dim + channel[None, :], mask=inside, other=1)
        z = tl.load(ends + (index * 3 + 1) * dim + channel[None, :], mask=inside, other=0)
        u = tl.load(ends + (index * 3 + 2) * dim + channel[None, :], mask=inside, other=0)
        c = tl.full([BLOCK_L, BLOCK_D], 0, STATE)
        u, c = begin(a, z, u, c, (chunk == first)[:, None], state[None, :], low[None, :])
        a, z, states, c = tl.associative_scan((a, z, u, c), 0, compose)
        following = inside & (chunk + 1 < chunks)[:, None]
        tl.store(before + (index + 1) * dim + channel[None, :], states + c, mask=following)
        state, low = last(states, BLOCK_L), last(c, BLOCK_L)


@tuned((4, 32), (4, 64), (8, 32))
@triton.jit(do_not_specialize=["length", "chunks", "chunk_length"])
def backward(
    grad,
    grad_row,
    grad_step,
    k,
    k_row,
    k_step,
    v,
    v_row,
    v_step,
    f,
    f_row,
    f_step,
    h,
    initial,
    reset,
    d_k,
    d_v,
    d_f,
    d_initial,
    before,
    ends,
    length,
    dim,
    chunks,
    chunk_length,
    KIND: tl.constexpr,
    REVERSE: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients, from those ``before`` the chunks; without d_k, write the maps of the chunks to ``ends``.

    The steps j run from the last one of the forward scan to its first, and REVERSE is their direction in the sequence.
    With G_j = ∂L/∂h_j + W_{j-1} the total gradient of a state, W_j = a_j·G_j is what goes on to the state before it:
    W_j = a_j·W_{j-1} + a_j·∂L/∂h_j is the scan, and G_j takes from it what comes before step j.
    """
    row, chunk, channel, start, stop = program_range(length, dim, chunks, chunk_length, BLOCK_D)
    here = channel < dim
    passed, low = load_state(before, row * chunks + chunk, dim, channel, STATE, BLOCK_D), tl.full([BLOCK_D], 0, STATE)
    chunk_a, chunk_z = low + 1, low
    grad, k, v = grad + row * grad_row + channel, k + row * k_row + channel, v + row * v_row + channel
    next_grad = load(grad, grad_step, start, stop, length, here, REVERSE, BLOCK_L)
    next_k = load(k, k_step, start, stop, length, here, REVERSE, BLOCK_L)
    if f is not None:
        f = f + row * f_row + channel
        next_f = load(f, f_step, start, stop, length, here, REVERSE, BLOCK_L)
    if d_k is not None:  # the forward scan had the state of step j + 1 before step j
        h = h + row * length * dim + channel
        next_h = load(h, dim, start + 1, length, length, here, REVERSE, BLOCK_L)
        next_v = load(v, v_step, start, stop, length, here, REVERSE, BLOCK_L)
    for first in tl.range(start, stop, BLOCK_L):
        grad_, k_ = next_grad.to(STATE), next_k.to(STATE)
        f_ = None if f is None else next_f.to(STATE)
        next_grad = load(grad, grad_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        next_k = load(k, k_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        if f is not None:
            next_f = load(f, f_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        if d_k is not None:
            h_, v_ = next_h.to(STATE), next_v.to(STATE)
            next_h = load(h, dim, first + BLOCK_L + 1, length, length, here, REVERSE, BLOCK_L)
            next_v = load(v, v_step, first + BLOCK_L, stop, length, here, REVERSE, BLOCK_L)
        rest, z_ = (k_, 1 - k_) if KIND == "linear" else gate(k_, f_)
        a, z = rest, z_
        if reset is not None:
            cut = load_reset(reset, row, first, stop, length, REVERSE, BLOCK_L)
            a, z = tl.where(cut, 0, a), tl.where(cut, 1, z)
        j = first + tl.arange(0, BLOCK_L)
        inside = (j < stop)[:, None] & here[None, :]
        a, z, zero = tl.where(inside, a, 1), tl.where(inside, z, 0), tl.full([BLOCK_L, BLOCK_D], 0, STATE)
        if d_k is None:
            w, c = advance(a, z, zero, zero, grad_, zero)
            a, z, w, c = tl.associative_scan((a, z, w, c), 0, compose)
            a, z, w, c = last(a, BLOCK_L), last(z, BLOCK_L), last(w, BLOCK_L), last(c, BLOCK_L)
            chunk_a, chunk_z, passed, low = compose(chunk_a, chunk_z, passed, low, a, z, w, c)
        else:
            is_first = (j == first)[:, None]
            r, s = tl.where(is_first, passed[None, :], zero), tl.where(is_first, low[None, :], zero)
            w, c = advance(a, z, zero, zero, grad_, zero)
            w, c = begin(a, z, w, c, is_first, r, s)
            maps = (a, z, w, c, zero + 1, zero, r, s)
            a, z, w, c, _, _, r, s = tl.associative_scan(maps, 0, compose_with_before)
            g, passed = grad_ + r, last(w, BLOCK_L)
            if exact(d_k, STATE):
                low = last(c, BLOCK_L)
                g = grad_ + (r + s)
            if initial is not None:
                h_0 = load_state(initial, row, dim, channel, STATE, BLOCK_D)
                h_ = tl.where((j == length - 1)[:, None], h_0[None, :], h_)
            if reset is not None:
                h_ = tl.where(cut, 0, h_)
            at = (row * length + time(j, length, REVERSE)[:, None]) * dim + channel[None, :]
            if KIND == "linear":
                tl.store(d_k + at, (g * h_).to(d_k.dtype.element_ty), mask=inside)
                tl.store(d_v + at, g.to(d_v.dtype.element_ty), mask=inside)
            else:
                c = activation(v_, KIND)
                to_logit = g * z_ * rest * (c - h_)
                to_v = g * z_
                if KIND == "positive":
                    to_v = tl.where(v_ >= 0, to_v, to_v * c * (1 - c))
                tl.store(d_v + at, to_v.to(d_v.dtype.element_ty), mask=inside)
                if f_ is not None:
                    to_f = -to_logit * sigmoid(-f_)
                    tl.store(d_f + at, to_f.to(d_f.dtype.element_ty), mask=inside)
                    to_logit = to_logit * sigmoid(-k_)
                tl.store(d_k + at, to_logit.to(d_k.dtype.element_ty), mask=inside)
    if d_k is None:
        store_map(ends, row * chunks + chunk, dim, channel, chunk_a, chunk_z, passed + low)
    elif stop == length:
        tl.store(d_initial + row * dim + channel, passed + low, mask=here)


INTERPRETED = not isinstance(forward.fn, triton.runtime.JITFunction)  # on CPU tensors, for tests
