"""The scan's Triton kernels for GPUs: fused with gate and activation, in tiles over (length, dim).

A step of the scan is the map h → a·h + u. The composition of two maps is again such a map, so that a tile computes all
its states at once (``tl.associative_scan``) and passes the last one to the next tile. Besides a, every map has
z = 1 − a: for a near 1, a float32 has only the leading digits of the difference from 1, and z has all of them.

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

# The most that a thread may use: by default, NVIDIA's assembler spills some registers to fit in one more program.
REGISTERS = 255 if torch.version.hip is None else None


@triton.jit
def compose(a1, z1, u1, a2, z2, u2):
    """The composition of two maps: the first, then the second.

    A decay of zero, as at a reset, discards the state before it, even an infinity or NaN.
    """
    forgets = a2 == 0
    z = z1 + a1 * z2
    a = tl.where(tl.abs(z) < 0.5, 1 - z, a1 * a2)
    u = a2 * u1 + u2
    return tl.where(forgets, a2, a), tl.where(forgets, z2, z), tl.where(forgets, u2, u)


@triton.jit
def advance(a, z, u, h):
    """Apply the map to a state, with z or a, whichever is more accurate."""
    kept = tl.where(tl.abs(z) < 0.5, h - z * h, a * h)
    return tl.where(a == 0, u, kept + u)


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
def load(x, x_row, x_step, row, t, channel, inside, STATE: tl.constexpr):
    """Load the elements (t, channel) of a row of a sequence, in the type of the state.

    x must not be None, which the callers check: up to Triton 3.6 a function cannot return None from a branch.
    """
    at = x + row * x_row + t[:, None] * x_step + channel[None, :]
    return tl.load(at, mask=inside, other=0).to(STATE)


@triton.jit
def decay(k, f, reset, row, t, length, known, KIND: tl.constexpr):
    """The decay a and z = 1 − a of every step; 0 and 1 at a reset."""
    if KIND == "linear":
        a, z = k, 1 - k
    else:
        a, z = gate(k, f)
    if reset is not None:
        cut = tl.load(reset + row * length + t, mask=known, other=0)[:, None] != 0
        a, z = tl.where(cut, 0, a), tl.where(cut, 1, z)
    return a, z


@triton.jit
def time(j, length, REVERSE: tl.constexpr):
    """Position of step j of the scan in the sequence."""
    return length - 1 - j if REVERSE else j


@triton.jit
def program_range(length, dim, chunks, chunk_length, BLOCK_D: tl.constexpr):
    """Row, chunk, channels, and first and last step of this program; 64 bits, because all offsets are made of them."""
    program = tl.program_id(0).to(tl.int64)
    blocks = (dim + BLOCK_D - 1) // BLOCK_D
    channel = program % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    chunk = program // blocks % chunks
    start = chunk * chunk_length
    return program // blocks // chunks, chunk, channel, start, tl.minimum(start + chunk_length, length)


@triton.jit
def load_state(x, index, dim, channel, STATE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load a state from the contiguous (index, dim) tensor x; zeros if x is None."""
    if x is None:
        return tl.full([BLOCK_D], 0, STATE)
    else:
        return tl.load(x + index * dim + channel, mask=channel < dim, other=0)


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
    """Choose the fastest of (steps, channels, warps, pipeline stages) once for each dim, kind and set of types."""
    configs = [
        triton.Config({"BLOCK_L": steps, "BLOCK_D": channels, "STAGES": stages}, num_warps=warps, maxnreg=REGISTERS)
        for steps, channels, warps, stages in tiles
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
    """The tiles that fit into the registers: in float64 two elements per thread, which one tile of each list has."""
    few = [config for config in configs if config.kwargs["BLOCK_L"] * config.kwargs["BLOCK_D"] <= 64 * config.num_warps]
    return few if tl.float64 == STATE else configs


@tuned((32, 32, 8, 1), (32, 32, 4, 1), (32, 64, 4, 1), (64, 32, 4, 2), (16, 32, 8, 1))
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
    STAGES: tl.constexpr,
):
    """Write every state to h and the last one to ``final``, from the states ``before`` the chunks.

    Without h, write the maps of the chunks to ``ends``.
    """
    row, chunk, channel, start, stop = program_range(length, dim, chunks, chunk_length, BLOCK_D)
    state = load_state(before, row * chunks + chunk, dim, channel, STATE, BLOCK_D)
    chunk_a, chunk_z = tl.full([BLOCK_D], 1, STATE), tl.full([BLOCK_D], 0, STATE)
    for first in tl.range(start, stop, BLOCK_L, num_stages=STAGES):
        j = first + tl.arange(0, BLOCK_L)
        t, known = time(j, length, REVERSE), j < stop
        inside = known[:, None] & (channel < dim)[None, :]
        k_ = load(k, k_row, k_step, row, t, channel, inside, STATE)
        v_ = load(v, v_row, v_step, row, t, channel, inside, STATE)
        f_ = None if f is None else load(f, f_row, f_step, row, t, channel, inside, STATE)
        a, z = decay(k_, f_, reset, row, t, length, known, KIND)
        u = v_ if KIND == "linear" else gate(k_, f_)[1] * activation(v_, KIND)
        a, z, u = tl.where(inside, a, 1), tl.where(inside, z, 0), tl.where(inside, u, 0)
        a, z, u = tl.associative_scan((a, z, u), 0, compose)
        if h is None:
            a, z, u = last(a, BLOCK_L), last(z, BLOCK_L), last(u, BLOCK_L)
            chunk_a, chunk_z, state = compose(chunk_a, chunk_z, state, a, z, u)
        else:
            states = advance(a, z, u, state[None, :])
            at = h + (row * length + t[:, None]) * dim + channel[None, :]
            tl.store(at, states.to(h.dtype.element_ty), mask=inside)
            state = last(states, BLOCK_L)
    if h is None:
        store_map(ends, row * chunks + chunk, dim, channel, chunk_a, chunk_z, state)
    elif stop == length:
        tl.store(final + row * dim + channel, state, mask=channel < dim)


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
    state = load_state(initial, row, dim, channel, STATE, BLOCK_D)
    tl.store(before + row * chunks * dim + channel, state, mask=channel < dim)
    for first in tl.range(start, stop, BLOCK_L):
        chunk = first + tl.arange(0, BLOCK_L)
        inside = (chunk < chunks)[:, None] & (channel < dim)[None, :]
        index = (row * chunks + chunk)[:, None]
        a = tl.load(ends + (index * 3 + 0) * dim + channel[None, :], mask=inside, other=1)
        z = tl.load(ends + (index * 3 + 1) * dim + channel[None, :], mask=inside, other=0)
        u = tl.load(ends + (index * 3 + 2) * dim + channel[None, :], mask=inside, other=0)
        a, z, u = tl.associative_scan((a, z, u), 0, compose)
        states = advance(a, z, u, state[None, :])
        following = inside & (chunk + 1 < chunks)[:, None]
        tl.store(before + (index + 1) * dim + channel[None, :], states, mask=following)
        state = last(states, BLOCK_L)


@tuned((32, 32, 8, 1), (32, 32, 4, 1), (16, 64, 4, 1), (32, 32, 4, 2), (16, 32, 8, 1))
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
    STAGES: tl.constexpr,
):
    """Write the gradients, from those ``before`` the chunks; without d_k, write the maps of the chunks to ``ends``.

    The steps j run from the last one of the forward scan to its first, and REVERSE is their direction in the sequence:
    G_j = ∂L/∂h_j + a·G_{j-1} with the decay of step j − 1, whose k and f were just read and are in the cache. The state
    that the forward scan had before step j is h_{j+1}.
    """
    row, chunk, channel, start, stop = program_range(length, dim, chunks, chunk_length, BLOCK_D)
    total = load_state(before, row * chunks + chunk, dim, channel, STATE, BLOCK_D)
    chunk_a, chunk_z = tl.full([BLOCK_D], 1, STATE), tl.full([BLOCK_D], 0, STATE)
    here = (channel < dim)[None, :]
    later = 1 if REVERSE else -1  # offset from t to the next step of the forward scan
    for first in tl.range(start, stop, BLOCK_L, num_stages=STAGES):
        j = first + tl.arange(0, BLOCK_L)
        t, known, followed = time(j, length, REVERSE), j < stop, (j < stop) & (j > 0)
        inside = known[:, None] & here
        u = load(grad, grad_row, grad_step, row, t, channel, inside, STATE)
        k_ = load(k, k_row, k_step, row, t + later, channel, followed[:, None] & here, STATE)
        f_ = None if f is None else load(f, f_row, f_step, row, t + later, channel, followed[:, None] & here, STATE)
        a, z = decay(k_, f_, reset, row, t + later, length, followed, KIND)
        a, z = tl.where(inside, a, 1), tl.where(inside, z, 0)
        a, z, u = tl.associative_scan((a, z, u), 0, compose)
        if d_k is None:
            a, z, u = last(a, BLOCK_L), last(z, BLOCK_L), last(u, BLOCK_L)
            chunk_a, chunk_z, total = compose(chunk_a, chunk_z, total, a, z, u)
        else:
            g = advance(a, z, u, total[None, :])
            total = last(g, BLOCK_L)
            h_ = load(h, length * dim, dim, row, t - later, channel, (j + 1 < length)[:, None] & here, STATE)
            if initial is not None:
                h_0 = load_state(initial, row, dim, channel, STATE, BLOCK_D)
                h_ = tl.where((j == length - 1)[:, None], h_0[None, :], h_)
            if reset is not None:
                cut = tl.load(reset + row * length + t, mask=known, other=0)[:, None] != 0
                h_ = tl.where(cut, 0, h_)
            at = (row * length + t[:, None]) * dim + channel[None, :]
            if KIND == "linear":
                tl.store(d_k + at, (g * h_).to(d_k.dtype.element_ty), mask=inside)
                tl.store(d_v + at, g.to(d_v.dtype.element_ty), mask=inside)
            else:
                k_ = load(k, k_row, k_step, row, t, channel, inside, STATE)
                v_ = load(v, v_row, v_step, row, t, channel, inside, STATE)
                f_ = None if f is None else load(f, f_row, f_step, row, t, channel, inside, STATE)
                rest, z_ = gate(k_, f_)
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
        store_map(ends, row * chunks + chunk, dim, channel, chunk_a, chunk_z, total)
    elif stop == length:
        j = tl.full([1], length - 1, tl.int64)
        t = time(j, length, REVERSE)
        k_ = load(k, k_row, k_step, row, t, channel, here, STATE)
        f_ = None if f is None else load(f, f_row, f_step, row, t, channel, here, STATE)
        a, z = decay(k_, f_, reset, row, t, length, j >= 0, KIND)
        first_total = advance(a, z, tl.full([1, BLOCK_D], 0, STATE), total[None, :])
        tl.store(d_initial + row * dim + channel[None, :], first_total, mask=here)


INTERPRETED = not isinstance(forward.fn, triton.runtime.JITFunction)  # on CPU tensors, for tests
