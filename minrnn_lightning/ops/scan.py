"""``linear_scan`` and ``gated_scan``: the recurrences with their arguments checked."""

import functools
from typing import Literal

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.ops import eager
from minrnn_lightning.ops.decomposition import run
from minrnn_lightning.ops.operators import scan, scan_and_state

Activation = Literal["positive", "identity"]


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
        TypeError: An argument is not a dense tensor, or not of a floating-point type (bool for ``reset``).
    """
    k, v, f, initial = check_sequences({"decay": decay, "update": update}, initial, reset)
    states: Tensor = run(scan, k, v, f, initial, reset, "linear", reverse)
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
        TypeError: An argument is not a dense tensor, or not of a floating-point type (bool for ``reset``).
    """
    k, v, f, initial = check_gates(gate, candidate, forget, initial, activation, reset)
    states: Tensor = run(scan, k, v, f, initial, reset, activation, reverse)
    return states


def gated_scan_and_state(
    gate: Tensor,
    candidate: Tensor,
    initial: Tensor | None = None,
    *,
    forget: Tensor | None = None,
    activation: Activation = "positive",
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """``gated_scan``, and the final state in the type of the state, (batch, dim): 16 bits would lose small updates.

    Its derivatives are those of the final one of the states that are returned.
    """
    k, v, f, initial = check_gates(gate, candidate, forget, initial, activation, reset)
    wide = eager.state_dtype(k.dtype)
    if k.dtype == wide or _is_empty(k):
        h: Tensor = run(scan, k, v, f, initial, reset, activation, reverse)
        return h, last_state(h, reverse, initial)
    h, exact = run(scan_and_state, k, v, f, initial, reset, activation, reverse)
    final = last_state(h, reverse, initial).to(wide)
    return h, final + (exact - final).detach()


def last_state(h: Tensor, reverse: bool, initial: Tensor | None) -> Tensor:
    """The final one of (batch, length, dim) states, or ``initial``; a copy, since a view would keep all of them."""
    if _is_empty(h):
        zeros = h.new_zeros(h.shape[0], h.shape[2], dtype=eager.state_dtype(h.dtype))
        return zeros if initial is None else zeros + initial
    return h[:, 0 if reverse else -1].clone()


def _is_empty(sequence: Tensor) -> bool:
    """Whether there is no step; a compiler or exporter, to which that would be a condition, takes it for no."""
    return not torch.compiler.is_compiling() and sequence.shape[1] == 0


def positive(x: Tensor) -> Tensor:
    """The paper's g: x + ½ for x ≥ 0 and σ(x) below, always above zero (section B.2.1).

    Args:
        x: Tensor of any shape.
    """
    return eager.candidate(x, "positive")


def check_dense(name: str, x: object, types: str = "float16, bfloat16, float32 or float64") -> None:
    """Check that an argument is a dense tensor: kernels cannot read sparse, nested or otherwise packed ones.

    Args:
        name: Name of the argument, for the error message.
        x: The argument.
        types: Types that the argument may have, for the error message.

    Raises:
        TypeError: The argument is not a dense tensor.
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


def check_gates(
    gate: Tensor,
    candidate: Tensor,
    forget: Tensor | None,
    initial: Tensor | None,
    activation: Activation,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """``check_sequences`` for the arguments of ``gated_scan``."""
    if activation not in ("positive", "identity"):
        raise InputError(f"activation is {activation!r}; it can be 'positive' or 'identity'")
    sequences = {"gate": gate, "candidate": candidate}
    if forget is not None:
        sequences["forget"] = forget  # torch 2.6 does not compile | of dictionaries
    return check_sequences(sequences, initial, reset)


def check_sequences(
    sequences: dict[str, Tensor], initial: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Check the arguments; return k, v and f in one type, and the initial state in the type of the state."""
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
