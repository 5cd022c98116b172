"""The scan's Triton kernels for GPUs: fused with gate and activation, in tiles over (length, dim).

A step of the scan is the map h → a·h + u. Two maps after one another are again such a map, so that a tile finds all its
states at once (``tl.associative_scan``) and passes the last one to the next tile. With a, every map carries z = 1 − a:
near 1 a float32 holds only the leading digits of what a long memory forgets in a step, and z holds all of them.

A program runs over one chunk of the length, for one row and one block of channels. It knows the state before its chunk
and writes every state; or it does not, and writes the map of the whole chunk, from which ``carry`` finds the state
before every chunk. Everything runs in the order of the scan: step j is at t = j, or at t = length − 1 − j reversed.

Only what Triton has on every device is used, and of its library in Triton only the built-in functions: these can be
interpreted also where Triton was imported as a compiler before.
"""

import torch
import triton
import triton.language as tl
from triton.runtime import Autotuner

from minrnn_lightning.ops.cuda.compilers import TRITON

if tuple(map(int, triton.__version__.split(".")[:2])) < tuple(map(int, TRITON[0].split("."))):
    raise ImportError(f"it is older than {TRITON[0]}")

# As many as a thread may have: left to itself, NVIDIA's assembler spills a few so that one more program fits.
REGISTERS = 255 if torch.version.hip is None else None


@triton.jit
def compose(a1, z1, u1, a2, z2, u2):
    """The map that is the first one and then the second one.

    A decay of zero, such as that of a reset, forgets everything, an infinity and a NaN as well.
    """
    forgets = a2 == 0
    z = z1 + a1 * z2
    a = tl.where(tl.abs(z) < 0.5, 1 - z, a1 * a2)
    u = a2 * u1 + u2
    return tl.where(forgets, a2, a), tl.where(forgets, z2, z), tl.where(forgets, u2, u)


@triton.jit
def advance(a, z, u, h):
    """The map applied to a state, from whichever end of the decay is nearer."""
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

    Divided by the larger of them, σ(k) and σ(f) stay in range where both vanish.
    """
    if f is None:
        e = tl.exp(-tl.abs(k))
        opened, shut = tl.where(k >= 0, 1, e), tl.where(k >= 0, e, 1)
    else:
        d = tl.where(f < 0, -f, 0) - tl.where(k < 0, -k, 0)
        e = tl.exp(-tl.abs(d))
        opened, shut = 1 + tl.exp(-tl.abs(f)), 1 + tl.exp(-tl.abs(k))
        opened, shut = tl.where(d >= 0, opened, opened * e), tl.where(d >= 0, shut * e, shut)
    return shut / (opened + shut), opened / (opened + shut)


@triton.jit
def activation(v, KIND: tl.constexpr):
    """The candidate state c(v)."""
    return tl.where(v >= 0, v + 0.5, sigmoid(v)) if KIND == "positive" else v


@triton.jit
def load(x, x_row, x_step, row, t, channel, inside, STATE: tl.constexpr):
    """The elements (t, channel) of a row of a sequence, in the type of the state.

    x is not None, which the callers check: until Triton 3.6 no function returns None from a branch.
    """
    at = x + row * x_row + t[:, None] * x_step + channel[None, :]
    return tl.load(at, mask=inside, other=0).to(STATE)


@triton.jit
def decay(k, f, reset, row, t, length, known, KIND: tl.constexpr):
    """Decays a and z of every step: those of the gates, 0 and 1 at a reset."""
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
    """Where step j of the scan is in the sequence."""
    return length - 1 - j if REVERSE else j


@triton.jit
def program_range(length, dim, chunks, chunk_length, BLOCK_D: tl.constexpr):
    """Row, chunk, channels, and first and last step of this program; 64 bits, since all offsets follow from them."""
    program = tl.program_id(0).to(tl.int64)
    blocks = (dim + BLOCK_D - 1) // BLOCK_D
    channel = program % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    chunk = program // blocks % chunks
    start = chunk * chunk_length
    return program // blocks // chunks, chunk, channel, start, tl.minimum(start + chunk_length, length)


@triton.jit
def load_state(x, index, dim, channel, STATE: tl.constexpr, BLOCK_D: tl.constexpr):
    """A state of the contiguous (index, dim) tensor x; zeros of None."""
    if x is None:
        return tl.full([BLOCK_D], 0, STATE)
    else:
        return tl.load(x + index * dim + channel, mask=channel < dim, other=0)


@triton.jit
def add(x, y):
    """What ``last`` reduces with."""
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
    """Choose the fastest of (steps, channels, warps, loads ahead) once for each dim, kind and set of types."""
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
    """The tiles whose numbers fit the registers: in float64 two a thread, of which every list has one."""
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

    Without h, the maps of the chunks to ``ends``.
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
    """Write the gradients, from those ``before`` the chunks; without d_k the maps of the chunks to ``ends``.

    This scan runs from the last step of the forward one to its first, and REVERSE is its own: G_j = ∂L/∂h_j + a·G_{j-1}
    with the decay of step j − 1, the one that the tile before has just read (so k and f come from the cache once more).
    The state before step j is h_{j+1}.
    """
    row, chunk, channel, start, stop = program_range(length, dim, chunks, chunk_length, BLOCK_D)
    total = load_state(before, row * chunks + chunk, dim, channel, STATE, BLOCK_D)
    chunk_a, chunk_z = tl.full([BLOCK_D], 1, STATE), tl.full([BLOCK_D], 0, STATE)
    here = (channel < dim)[None, :]
    later = 1 if REVERSE else -1  # from t to the step of the forward scan after it
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
                shut, opened = gate(k_, f_)
                c = activation(v_, KIND)
                to_logit = g * opened * shut * (c - h_)
                to_v = g * opened
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
