"""``linear_scan`` and ``gated_scan``: the recurrences as PyTorch operators.

Both are one operator, ``torch.ops.minrnn.scan``, over two sequences k and v whose meaning is its ``kind``:

    linear      h_t = k_t · h_{t-1} + v_t
    positive    h_t = h_{t-1} + z_t · (g(v_t) − h_{t-1})       g(v) = v + ½ for v ≥ 0, σ(v) below
    identity    h_t = h_{t-1} + z_t · (v_t − h_{t-1})

The last two are minGRU of "Were RNNs All We Needed?" (https://arxiv.org/abs/2410.01201, sections 3.1 and B.2) with
z = σ(k), and with a third sequence f its minLSTM, z = σ(k) / (σ(k) + σ(f)) (sections 3.2 and B.2).
Backward, with G_t = ∂L/∂h_t + a_{t+1} · G_{t+1} for h_t = a_t · h_{t-1} + b_t, is the same scan run the other way.
"""

import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.ops import eager
from minrnn_lightning.ops.cuda.compilers import TRITON_RANGE, CompilerError

Activation = Literal["positive", "identity"]
Kernel = Literal["auto", "torch", "triton"]

KERNELS = ("auto", "torch", "triton")
_chosen: str = os.environ.get("MINRNN_KERNEL", "auto")
if _chosen not in KERNELS:
    raise InputError(f"MINRNN_KERNEL is {_chosen!r}; it can be {', '.join(KERNELS[:-1])} or {KERNELS[-1]}")


def linear_scan(
    decay: Tensor, update: Tensor, initial: Tensor | None = None, *, reset: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """Run h_t = decay_t · h_{t-1} + update_t over the length, with a float32 state (float64 for float64 inputs).

    Values must be finite, and states within the range of their type: from the step on at which one is infinite, a
    channel may be NaN where the mathematics gives an infinity, and a later ``reset`` need not end it.

    Args:
        decay: What remains of the state at each step, (batch, length, dim).
        update: What is added at each step, (batch, length, dim).
        initial: The state before the first step, (batch, dim); zeros if None.
        reset: Bool (batch, length), True where the state before that step is replaced by zeros.
        reverse: Run from the last step to the first.

    Returns:
        Every state, (batch, length, dim), in the promoted type of ``decay`` and ``update``; the final one is
        ``h[:, -1]``, or ``h[:, 0]`` reversed.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An argument is no dense tensor, or not of a floating-point type (bool for ``reset``).
    """
    k, v, f, initial = _checked({"decay": decay, "update": update}, initial, reset)
    states: Tensor = scan(k, v, f, initial, reset, "linear", reverse)
    return states


def gated_scan(
    gate: Tensor,
    candidate: Tensor,
    initial: Tensor | None = None,
    *,
    forget: Tensor | None = None,
    activation: Activation = "positive",
    reset: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Run h_t = h_{t-1} + z_t · (c(candidate_t) − h_{t-1}) over the length, in one fused kernel.

    minGRU has z = σ(gate). With ``forget`` it is minLSTM, whose two gates are divided by their sum:
    z = σ(gate) / (σ(gate) + σ(forget)). For the backward pass only the inputs and the output are kept.

    Candidates must be finite, and states within the range of their type: from the step on at which one is infinite, a
    channel may be NaN where the mathematics gives an infinity, as z · (c − h) is ∞ − ∞, and a later ``reset`` need not
    end it. Gates may be infinite.

    Args:
        gate: Logits of the update gate (minLSTM's input gate), (batch, length, dim).
        candidate: The candidate state before its activation c, (batch, length, dim).
        initial: The state before the first step (a state, not a pre-activation), (batch, dim); zeros if None.
        forget: Logits of minLSTM's forget gate, (batch, length, dim); minGRU if None.
        activation: c: ``positive`` is the paper's g (v + ½ for v ≥ 0, σ(v) below), ``identity`` is none.
        reset: Bool (batch, length), True where the state before that step is replaced by zeros.
        reverse: Run from the last step to the first.

    Returns:
        Every state, (batch, length, dim), in the promoted type of the sequences; the final one is
        ``h[:, -1]``, or ``h[:, 0]`` reversed.

    Raises:
        ValueError: A shape does not fit, or the activation is unknown.
        TypeError: An argument is no dense tensor, or not of a floating-point type (bool for ``reset``).
    """
    if activation not in ("positive", "identity"):
        raise InputError(f"activation is {activation!r}; it can be 'positive' or 'identity'")
    sequences = {"gate": gate, "candidate": candidate} | ({} if forget is None else {"forget": forget})
    k, v, f, initial = _checked(sequences, initial, reset)
    states: Tensor = scan(k, v, f, initial, reset, activation, reverse)
    return states


def positive(x: Tensor) -> Tensor:
    """The paper's g: x + ½ for x ≥ 0 and σ(x) below, always above zero (section B.2.1)."""
    return eager.candidate(x, "positive")


def check_dense(name: str, x: object, types: str = "float16, bfloat16, float32 or float64") -> None:
    """Refuse what is no tensor, and tensors that kernels cannot read: sparse, nested or packed by a library.

    Raises:
        TypeError: It is none of the ``types``, in words.
    """
    if not isinstance(x, Tensor):
        given = "None" if x is None else type(x).__name__
    elif x.is_nested:
        given = "a nested one"
    elif x.layout is not torch.strided:
        given = f"one of layout {x.layout}"
    else:
        return
    raise TypeError(f"{name} must be a dense tensor of {types}, got {given}")


@contextmanager
def use_kernel(name: Kernel) -> Iterator[None]:
    """Choose the kernel inside a ``with`` block.

    ``auto`` is the fastest for the device, ``torch`` the eager one, ``triton`` that for GPUs, which runs on CPU
    tensors only where Triton was imported with ``TRITON_INTERPRET=1`` in the environment (slowly, for tests).
    The environment variable ``MINRNN_KERNEL`` chooses for the whole process.

    Raises:
        ValueError: The name is not one of the three.
    """
    global _chosen
    if name not in KERNELS:
        raise InputError(f"the kernel is {name!r}; it can be 'auto', 'torch' or 'triton'")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def _checked(
    sequences: dict[str, Tensor], initial: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Refuse what does not fit; k, v and f in one type, and the initial state in that of the state."""
    for name, sequence in sequences.items():
        check_dense(name, sequence)
    if initial is not None:
        check_dense("initial", initial)
    if reset is not None:
        check_dense("reset", reset, "bool")
    (first, shape), *others = ((name, sequence.shape) for name, sequence in sequences.items())
    if len(shape) != 3:
        raise ValueError(f"{first} must have shape (batch, length, dim), got {tuple(shape)}")
    batch, length, dim = shape
    for name, other in others:
        if other != shape:
            raise ValueError(f"{name} must have the shape of {first}, {tuple(shape)}, got {tuple(other)}")
    if initial is not None and initial.shape != (batch, dim):
        raise ValueError(f"initial must have shape (batch, dim) = {(batch, dim)}, got {tuple(initial.shape)}")
    if reset is not None and reset.shape != (batch, length):
        raise ValueError(f"reset must have shape (batch, length) = {(batch, length)}, got {tuple(reset.shape)}")
    if reset is not None and reset.dtype != torch.bool:
        raise TypeError(f"reset must be bool, got {reset.dtype}")
    device = sequences[first].device
    for name, tensor in (*sequences.items(), ("initial", initial), ("reset", reset)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on the device of {first}, {device}, got {tensor.device}")
    for name, tensor in (*sequences.items(), ("initial", initial)):
        if tensor is not None and tensor.dtype not in eager.STORAGE:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    dtype = functools.reduce(torch.promote_types, (sequence.dtype for sequence in sequences.values()))
    k, v, *f = (sequence.to(dtype) for sequence in sequences.values())
    if initial is not None:
        initial = initial.to(eager.state_dtype(dtype))
    return k, v, f[0] if f else None, initial


_loaded: dict[str, ModuleType] = {}  # by type of device, the kernels that 'auto' chooses


def _compiled(name: str, compiler: str) -> ModuleType:
    """The kernels of that name, or the eager ones where what compiles them does not load."""
    if name not in _loaded:
        try:
            _loaded[name] = import_module(f"minrnn_lightning.ops.{name}.launch")
        except Exception as error:  # a version that the kernels were not written for fails in any way
            supported = f"; {TRITON_RANGE} are supported" if compiler == "Triton" else ""
            _fall_back(name, f"{_version(compiler)} does not load ({error}{supported})")
    return _loaded[name]


def _fall_back(name: str, reason: str) -> None:
    """Use the eager kernels instead of those of that name from now on, with a warning."""
    warnings.warn(f"{reason}: the slower torch kernel runs instead", stacklevel=3)
    _loaded[name] = eager


def _version(compiler: str) -> str:
    """The compiler with its version, where it could be imported at all."""
    return f"{compiler} {getattr(sys.modules.get(compiler.lower()), '__version__', '')}".rstrip()


def _triton(device: torch.device) -> ModuleType:
    """The Triton kernels, which were asked for by name.

    Raises:
        RuntimeError: Triton does not load, or cannot run on this device.
    """
    try:
        from minrnn_lightning.ops.cuda import launch as cuda
    except Exception as error:
        raise RuntimeError(
            f"the triton kernel needs Triton {TRITON_RANGE}, and {_version('Triton')} does not load ({error}): "
            "install one of these, or choose the kernel 'auto' or 'torch'"
        ) from error
    if device.type != "cuda" and not cuda.INTERPRETED:
        raise RuntimeError(
            f"the triton kernel runs on CUDA tensors, got {device}: "
            "choose the kernel 'auto', or set TRITON_INTERPRET=1 in the environment to interpret it (slowly, for tests)"
        )
    return cuda


def _kernels(device: torch.device) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run on this device."""
    if _chosen == "triton":
        return _triton(device)
    compiler = {"cpu": "Numba", "cuda": "Triton"}.get(device.type)
    return eager if _chosen == "torch" or compiler is None else _compiled(device.type, compiler)


def _run(function: str, sequence: Tensor, *rest: Any) -> Any:
    """That function of the device's kernels, or of the eager ones where the device's cannot be compiled.

    Raises:
        RuntimeError: The kernels that were asked for by name cannot be compiled.
    """
    kernels = _kernels(sequence.device)
    try:
        return getattr(kernels, function)(sequence, *rest)
    except CompilerError as error:
        if _chosen == "triton":
            raise RuntimeError(
                f"{error}: install Triton {TRITON_RANGE}, or choose the kernel 'auto' or 'torch'"
            ) from error
        _fall_back(sequence.device.type, str(error))
        return getattr(eager, function)(sequence, *rest)


# Not torch.library.custom_op: its first call imports torch._dynamo, which takes longer than all the rest.
torch.library.define(
    "minrnn::scan",
    "(Tensor k, Tensor v, Tensor? f, Tensor? initial, Tensor? reset, str kind, bool reverse) -> Tensor",
)
torch.library.define(
    "minrnn::scan_backward",
    "(Tensor grad, Tensor k, Tensor v, Tensor? f, Tensor h, Tensor? initial, Tensor? reset, str kind, bool reverse)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
scan = torch.ops.minrnn.scan.default
scan_backward = torch.ops.minrnn.scan_backward.default


def _scan(k: Tensor, *rest: Any) -> Tensor:
    """The operator behind both scans: every state, in the type of ``k``."""
    states: Tensor = _run("forward", k, *rest)
    return states


def _scan_backward(grad: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, f (an empty one if there is none) and the initial state."""
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = _run("backward", grad, k, *rest)
    return gradients


def _fake_scan(k: Tensor, *_: Any) -> Tensor:
    return k.new_empty(k.shape)


def _fake_scan_backward(
    grad: Tensor, k: Tensor, v: Tensor, f: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, dim = k.shape
    d_f = k.new_empty(batch, 0 if f is None else length, dim)
    return (
        k.new_empty(k.shape),
        k.new_empty(k.shape),
        d_f,
        k.new_empty((batch, dim), dtype=eager.state_dtype(k.dtype)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    k, v, f, initial, reset, ctx.kind, ctx.reverse = inputs
    ctx.save_for_backward(k, v, f, output, initial, reset)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    k, v, f, h, initial, reset = ctx.saved_tensors
    d_k, d_v, d_f, d_initial = scan_backward(grad, k, v, f, h, initial, reset, ctx.kind, ctx.reverse)
    return d_k, d_v, None if f is None else d_f, None if initial is None else d_initial, None, None, None


def _no_second_gradient(*_: Any) -> Any:
    raise RuntimeError("the gradient of a scan has no gradient of its own: call backward without create_graph")


def _batched(op: Any) -> Any:
    """The vmap rule of a scan: the mapped dimension joins the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def join(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.movedim(dim, 0) if dim is not None else x.expand(size, *x.shape)
            return x.flatten(0, 1)

        def split(x: Tensor) -> Tensor:
            return x.view(size, x.shape[0] // size, *x.shape[1:])

        out = op(*map(join, args, in_dims))
        if isinstance(out, Tensor):
            return split(out), 0
        return tuple(map(split, out)), (0,) * len(out)

    return rule


for _op, _kernel, _fake in ((scan, _scan, _fake_scan), (scan_backward, _scan_backward, _fake_scan_backward)):
    torch.library.impl(_op.name(), "CompositeExplicitAutograd", _kernel)  # type: ignore[no-untyped-call]
    torch.library.register_fake(_op, _fake)
    torch.library.register_vmap(_op, _batched(_op))
torch.library.register_autograd(scan, _gradient, setup_context=_keep)
torch.library.register_autograd(scan_backward, _no_second_gradient)
