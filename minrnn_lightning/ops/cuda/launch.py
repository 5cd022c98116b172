"""The scan on GPUs: divides the length into chunks and passes tensors to the Triton kernels.

If the rows and blocks of channels are enough programs for all multiprocessors, each program runs over the whole length:
one pass. Otherwise (batch 1, length one million) the length is divided into chunks: a first pass computes the map of
every chunk, a small kernel the state before every chunk, and a last pass the states, chunk by chunk.

Sequences (elements of the type of ``k``) moved between memory and chip, with the least possible:

    =================  =========================  =========================  =====  ==========  =======
    pass                read                       written                    least  one pass    chunked
    =================  =========================  =========================  =====  ==========  =======
    forward             k, v                       h                          3      3           5
    forward, with f     k, v, f                    h                          4      4           7
    backward            grad, k, v, h              ∂k, ∂v                     6      6           8
    backward, with f    grad, k, v, f, h           ∂k, ∂v, ∂f                 8      8           11
    =================  =========================  =========================  =====  ==========  =======

Times the size of an element, that is bytes per step and channel: the forward one in bfloat16 moves 3 · 2 = 6 bytes.
The first pass over the chunks reads what decays and updates depend on: k, v, f forward and grad, k, f backward;
``linear_scan`` backward does not read v: one less. Not counted: reset (1 byte per step), the initial state and its
gradient, and 7 numbers per chunk and channel.

The first call for a dim, kind and set of types times several tile sizes; later ones use the fastest. The order of
additions depends on the tile, so that results are the same bits from call to call, but may differ in rounding between
processes; with ``torch.use_deterministic_algorithms(True)`` the tile is fixed and nothing differs.
"""

import functools
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from minrnn_lightning.ops.cuda import kernels
from minrnn_lightning.ops.cuda.compilers import TRITON_RANGE, CompilerError
from minrnn_lightning.ops.eager import final_of_empty, state_dtype

CHANNELS = 64  # of a program, in most tiles
ENOUGH_PROGRAMS = 4  # for each multiprocessor: with as many, one pass over the whole length takes less time than two
PROGRAMS = 16  # for each multiprocessor, when the length is divided: the memory waits for no program then
MIN_CHUNK_LENGTH = 128  # steps of a chunk; with fewer, starting a program takes longer than running it
MIN_CHUNKS = 4  # with fewer, one pass takes less time than two
C_COMPILER_MODULE = "triton.runtime.build"  # the module that calls the C compiler
INTERPRETED: bool = kernels.INTERPRETED
CARRY = {"BLOCK_L": 16, "BLOCK_D": CHANNELS}  # tile of chunks
TILE = {"BLOCK_L": 16, "BLOCK_D": 16}  # in the interpreter, which goes from element to element


def forward(
    k: Tensor, v: Tensor, f: Tensor | None, initial: Tensor | None, reset: Tensor | None, kind: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Every state of the scan, (batch, length, dim), in the type of ``k``, and the last one in that of the state."""
    h, final = k.new_empty(k.shape), final_of_empty(k, initial)
    if h.numel():
        inputs = *_strided(k), *_strided(v), *_strided(f), _dense(reset)
        _scan(kernels.forward, inputs, (h, final), _dense(initial), k, kind, reverse)
    return h, final


def backward(
    grad: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    h: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, f (an empty one if there is none) and the initial state, from that of every state."""
    batch, length, dim = k.shape
    d_k, d_v = k.new_empty(k.shape), k.new_empty(k.shape)
    d_f = k.new_empty(batch, 0 if f is None else length, dim)
    d_initial = k.new_zeros(batch, dim, dtype=state_dtype(k.dtype))
    if d_k.numel():
        inputs = *_strided(grad), *_strided(k), *_strided(v), *_strided(f), _dense(h), _dense(initial), _dense(reset)
        outputs = d_k, d_v, None if f is None else d_f, d_initial
        _scan(kernels.backward, inputs, outputs, None, k, kind, not reverse)
    return d_k, d_v, d_f, d_initial


def chunk_length(batch: int, length: int, dim: int, device: torch.device) -> int:
    """Steps that a program runs over: all of them where the device is busy, fewer where it would be idle."""
    programs, processors = batch * -(-dim // CHANNELS), _multiprocessors(device)
    if programs >= ENOUGH_PROGRAMS * processors or length < MIN_CHUNKS * MIN_CHUNK_LENGTH:
        return length
    return max(MIN_CHUNK_LENGTH, -(-length // -(-PROGRAMS * processors // programs)))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _strided(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A sequence whose channels are neighbours, and its strides from row to row and from step to step."""
    if x is None:
        return None, 0, 0
    if x.stride(2) != 1 and x.shape[2] > 1:
        x = x.contiguous()
    return x, x.stride(0), x.stride(1)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


@contextmanager
def _compiling() -> Iterator[None]:
    """Raise an error of the compiler as CompilerError, and leave one of a running kernel or of memory as it is.

    The type of an error does not tell, since Triton and the assembler raise RuntimeError too, but its traceback does: a
    call of Triton's compiler, which uses no device, or of the C compiler for the code that launches the kernel.
    """
    try:
        yield
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(
            f.f_code is triton.compile.__code__ or f.f_globals.get("__name__") == C_COMPILER_MODULE for f in frames
        ):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or "no message").splitlines()[-1]  # the first ones quote the kernel
        reason = f"{type(cause).__name__}: {reason}; {TRITON_RANGE} are supported"
        raise CompilerError(f"Triton {triton.__version__} does not compile the kernel ({reason})") from error


@_compiling()
def _scan(
    kernel: Any,
    inputs: tuple[Any, ...],
    outputs: tuple[Tensor | None, ...],
    initial: Tensor | None,
    k: Tensor,
    kind: str,
    reverse: bool,
) -> None:
    """Fill the outputs, in one pass or chunk by chunk."""
    batch, length, dim = k.shape
    steps = chunk_length(batch, length, dim, k.device)
    chunks = -(-length // steps)
    wide = state_dtype(k.dtype)
    state = tl.float64 if wide == torch.float64 else tl.float32
    sizes = {"length": length, "dim": dim, "chunks": chunks, "chunk_length": steps}
    options = {**sizes, "KIND": kind, "REVERSE": reverse, "STATE": state}

    def programs(meta: dict[str, int]) -> tuple[int]:
        return (batch * chunks * -(-dim // meta["BLOCK_D"]),)

    with torch.cuda.device(k.device if k.is_cuda else -1):
        before = initial
        if chunks > 1:
            ends = k.new_empty(batch, chunks, 3, dim, dtype=wide)
            before = k.new_empty(batch, chunks, dim, dtype=wide)
            _launch(kernel, programs, *inputs, *[None] * len(outputs), None, ends, **options)
            rows = (batch * -(-dim // CHANNELS),)
            kernels.carry[rows](ends, initial, before, chunks, dim, STATE=state, num_warps=1, **CARRY)
        _launch(kernel, programs, *inputs, *outputs, before, None, **options)


def _launch(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
    """Run a kernel with its fastest tile or a fixed one: the interpreter's, or the first for deterministic results."""
    if INTERPRETED:
        kernel.fn[grid](*args, **options, **TILE)
    elif torch.are_deterministic_algorithms_enabled():
        kernel.fn[grid](*args, **options, **kernel.configs[0].all_kwargs())
    else:
        kernel[grid](*args, **options)
