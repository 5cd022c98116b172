"""minGRU and minLSTM as pure functions of their logits: the equations of "Were RNNs All We Needed?".

Feng et al. 2024, https://arxiv.org/abs/2410.01201. The logits are linear in the input x_t; the caller computes them.
All functions are the recurrence h_t = a_t · h_{t-1} + b_t, over a sequence (a parallel scan) or for one step; decay a_t
and update b_t are those of ``_gru_coefficients`` and ``_lstm_coefficients``. The state is float32 for 16-bit logits
too, and float64 for float64 logits.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.checks import check_delta_t
from minrnn_lightning.ops import Activation, gated_scan, linear_scan, positive, sharded_gated_scan, sharded_scan
from minrnn_lightning.ops.eager import gate_logit, state_dtype
from minrnn_lightning.ops.scan import check_gates, gated_scan_and_state, last_state

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from typing_extensions import Unpack  # in typing since Python 3.11

States = Tensor | tuple[Tensor, Tensor]  # every state, and with ``return_state`` the last one too


class Options(TypedDict, total=False):
    """The options of ``min_gru``."""

    activation: Activation
    signed: bool
    reset: Tensor | None
    reverse: bool
    delta_t: Tensor | None
    initial_state: Tensor | None
    group: "ProcessGroup | None"


class LSTMOptions(Options, total=False):
    """The options of ``min_lstm``."""

    normalize: bool


@overload
def min_gru(
    gate: Tensor,
    candidate: Tensor,
    h_0: Tensor | None = None,
    *,
    return_state: Literal[False] = False,
    **options: "Unpack[Options]",
) -> Tensor: ...
@overload
def min_gru(
    gate: Tensor,
    candidate: Tensor,
    h_0: Tensor | None = None,
    *,
    return_state: Literal[True],
    **options: "Unpack[Options]",
) -> tuple[Tensor, Tensor]: ...


def min_gru(
    gate: Tensor,
    candidate: Tensor,
    h_0: Tensor | None = None,
    *,
    activation: Activation = "positive",
    signed: bool = False,
    reset: Tensor | None = None,
    reverse: bool = False,
    delta_t: Tensor | None = None,
    initial_state: Tensor | None = None,
    group: "ProcessGroup | None" = None,
    return_state: bool = False,
) -> States:
    """Run minGRU over a sequence: h_t = (1 − z_t) · h_{t-1} + z_t · c(v_t) with z_t = σ(k_t) (section 3.1).

    Args:
        gate: k, the logits of the update gate, (batch, length, dim).
        candidate: v, the candidate state before its activation, (batch, length, dim).
        h_0: The state before the first step (a state, not a logit), (batch, dim); ``initial_state`` if None.
        activation: c: ``positive`` is the paper's g, v + ½ for v ≥ 0 and σ(v) below (section B.2.1); ``identity``
            is none.
        signed: Whether the decay is 1 − 2 z_t, in (−1, 1), instead of 1 − z_t (https://arxiv.org/abs/2411.12537).
        reset: Bool (batch, length), True at the first step of a new sequence, whatever the direction.
        reverse: Run from the last step to the first.
        delta_t: (batch, length), at least 0: the time since the step before. The decay becomes (1 − z_t)^Δt.
        initial_state: The (learned) state from which every sequence starts, after a reset too, (dim,); zeros if None.
        group: Processes that hold a part each of the same sequences, in the order of their ranks; h_0 is then the state
            before the first part, and the state that is returned is that after the last part, without a gradient.
        return_state: Whether to return the last state as well.

    Returns:
        h, (batch, length, dim), in the type of the logits; with ``return_state`` a tuple of it and the state after the
        last step of the scan, (batch, dim), which is float32 (float64 for float64 logits).

    Raises:
        InputError: ``delta_t`` is given with ``signed``, ``group`` with ``reverse``, or the activation is unknown.
        ValueError: A shape does not fit.
        TypeError: An argument is no dense tensor, or of a type that it cannot have.
    """
    check_delta_t("min_gru", delta_t, gate, signed)
    _check_group(group, reverse)
    reset, delta_t, h_0, initial_state = _boundaries(gate, reset, delta_t, h_0, initial_state, reverse)
    if not signed and delta_t is None and initial_state is None:
        if group is not None:
            h, state = sharded_gated_scan(gate, candidate, h_0, group=group, activation=activation, reset=reset)
            return (h, state) if return_state else h
        scan: Callable[..., States] = gated_scan_and_state if return_state else gated_scan
        return scan(gate, candidate, h_0, activation=activation, reset=reset, reverse=reverse)
    gate, candidate, _, h_0 = check_gates(gate, candidate, None, h_0, activation, reset)
    dtype = state_dtype(gate.dtype)  # in 16 bits, a decay above 0.998 would be 1
    decay, update = _gru_coefficients(gate.to(dtype), candidate.to(dtype), activation, signed, delta_t)
    h, state = _scan(decay, update, h_0, reset, reverse, initial_state, group)
    return (h.to(gate.dtype), state) if return_state else h.to(gate.dtype)


def min_gru_step(
    gate_t: Tensor,
    candidate_t: Tensor,
    h: Tensor,
    *,
    activation: Activation = "positive",
    signed: bool = False,
    delta_t: Tensor | None = None,
) -> Tensor:
    """One step of ``min_gru`` (section 3.1): from h_{t-1} to h_t, both (batch, dim).

    The result has the type of the state, float32 or float64: 16 bits would lose small updates. ``delta_t`` is (batch,).
    """
    check_delta_t("min_gru_step", delta_t, gate_t, signed)
    dtype = state_dtype(gate_t.dtype)
    decay, update = _gru_coefficients(gate_t.to(dtype), candidate_t.to(dtype), activation, signed, delta_t)
    return torch.addcmul(update, decay, h.to(dtype))


@overload
def min_lstm(
    forget: Tensor,
    input: Tensor,
    candidate: Tensor,
    h_0: Tensor | None = None,
    *,
    return_state: Literal[False] = False,
    **options: "Unpack[LSTMOptions]",
) -> Tensor: ...
@overload
def min_lstm(
    forget: Tensor,
    input: Tensor,
    candidate: Tensor,
    h_0: Tensor | None = None,
    *,
    return_state: Literal[True],
    **options: "Unpack[LSTMOptions]",
) -> tuple[Tensor, Tensor]: ...
def min_lstm(
    forget: Tensor,
    input: Tensor,  # noqa: A002 - the paper's name of the gate
    candidate: Tensor,
    h_0: Tensor | None = None,
    *,
    normalize: bool = True,
    activation: Activation = "positive",
    signed: bool = False,
    reset: Tensor | None = None,
    reverse: bool = False,
    delta_t: Tensor | None = None,
    initial_state: Tensor | None = None,
    group: "ProcessGroup | None" = None,
    return_state: bool = False,
) -> States:
    """Run minLSTM over a sequence: h_t = f′_t · h_{t-1} + i′_t · c(v_t) (section 3.2).

    With f = σ(forget) and i = σ(input), normalised f′ = f / (f + i) and i′ = i / (f + i), which is minGRU with the gate
    log i − log f; without normalisation f′ = f and i′ = i.

    Args:
        forget: Logits of the forget gate, (batch, length, dim).
        input: Logits of the input gate, (batch, length, dim).
        candidate: v, the candidate state before its activation, (batch, length, dim).
        h_0: The state before the first step (a state, not a logit), (batch, dim); ``initial_state`` if None.
        normalize: Whether the gates are divided by their sum, so that states stay bounded at any length.
        activation: See ``min_gru``.
        signed: Whether the decay is 2 f′_t − 1, in (−1, 1), instead of f′_t.
        reset: See ``min_gru``.
        reverse: See ``min_gru``.
        delta_t: See ``min_gru``; the decay becomes f′_t^Δt.
        initial_state: See ``min_gru``.
        group: See ``min_gru``.
        return_state: See ``min_gru``.

    Returns:
        See ``min_gru``.

    Raises:
        InputError: ``delta_t`` is given with ``signed``, ``group`` with ``reverse``, or the activation is unknown.
        ValueError: A shape does not fit.
        TypeError: An argument is no dense tensor, or of a type that it cannot have.
    """
    check_delta_t("min_lstm", delta_t, forget, signed)
    _check_group(group, reverse)
    reset, delta_t, h_0, initial_state = _boundaries(forget, reset, delta_t, h_0, initial_state, reverse)
    if normalize and not signed and delta_t is None and initial_state is None:
        options: dict[str, Any] = {"forget": forget, "activation": activation, "reset": reset}
        if group is not None:
            h, state = sharded_gated_scan(input, candidate, h_0, group=group, **options)
            return (h, state) if return_state else h
        scan: Callable[..., States] = gated_scan_and_state if return_state else gated_scan
        return scan(input, candidate, h_0, reverse=reverse, **options)
    i, v, f, h_0 = check_gates(input, candidate, forget, h_0, activation, reset)
    assert f is not None
    dtype = state_dtype(f.dtype)
    decay, update = _lstm_coefficients(f.to(dtype), i.to(dtype), v.to(dtype), normalize, activation, signed, delta_t)
    h, state = _scan(decay, update, h_0, reset, reverse, initial_state, group)
    return (h.to(f.dtype), state) if return_state else h.to(f.dtype)


def min_lstm_step(
    forget_t: Tensor,
    input_t: Tensor,
    candidate_t: Tensor,
    h: Tensor,
    *,
    normalize: bool = True,
    activation: Activation = "positive",
    signed: bool = False,
    delta_t: Tensor | None = None,
) -> Tensor:
    """One step of ``min_lstm`` (section 3.2): from h_{t-1} to h_t, both (batch, dim); see ``min_gru_step``."""
    check_delta_t("min_lstm_step", delta_t, forget_t, signed)
    dtype = state_dtype(forget_t.dtype)
    logits = forget_t.to(dtype), input_t.to(dtype), candidate_t.to(dtype)
    decay, update = _lstm_coefficients(*logits, normalize, activation, signed, delta_t)
    return torch.addcmul(update, decay, h.to(dtype))


def activate(v: Tensor, activation: Activation) -> Tensor:
    """Apply c to a candidate state or a learned initial state: the paper's g (section B.2.1), or the identity."""
    return positive(v) if activation == "positive" else v


def _gru_coefficients(
    gate: Tensor, candidate: Tensor, activation: Activation, signed: bool, delta_t: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Decay a and update b of minGRU, from logits in the type of the state."""
    if delta_t is not None:  # 1 − z to the power of Δt
        y = (delta_t.to(gate.dtype).unsqueeze(-1) * F.softplus(gate)).clamp_min(torch.finfo(gate.dtype).tiny)
        gate = y + torch.log(-torch.expm1(-y))
    z = torch.sigmoid(gate)
    # σ(−k), not 1 − z, which loses its digits where z is near 1.
    return 1 - 2 * z if signed else torch.sigmoid(-gate), z * activate(candidate, activation)


def _lstm_coefficients(
    forget: Tensor,
    input_: Tensor,
    candidate: Tensor,
    normalize: bool,
    activation: Activation,
    signed: bool,
    delta_t: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Decay a and update b of minLSTM, from logits in the type of the state."""
    if normalize:
        return _gru_coefficients(gate_logit(input_, forget), candidate, activation, signed, delta_t)
    log_decay = F.logsigmoid(forget)
    log_decay = log_decay if delta_t is None else log_decay * delta_t.to(forget.dtype).unsqueeze(-1)
    decay = log_decay.exp()
    return 2 * decay - 1 if signed else decay, torch.sigmoid(input_) * activate(candidate, activation)


def _boundaries(
    logit: Tensor,
    reset: Tensor | None,
    delta_t: Tensor | None,
    h_0: Tensor | None,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Resets and times in the order of the scan, h_0, and the state after a reset (None for zeros)."""
    if reverse and reset is not None:
        # Running backward, the state is dropped after a sequence's first step: before the step to the left of it.
        reset = F.pad(reset, (0, 1))[:, 1:]
    if reverse and delta_t is not None:
        # Likewise the time to the step on the right; that of the last step is unknown and taken as 1.
        delta_t = F.pad(delta_t, (0, 1), value=1)[:, 1:]
    if h_0 is None and initial_state is not None:
        h_0 = initial_state.expand(logit.shape[0], -1)
    return reset, delta_t, h_0, None if reset is None else initial_state


def _check_group(group: "ProcessGroup | None", reverse: bool) -> None:
    if group is not None and reverse:
        raise InputError("reverse must be false with group: the reset that ends a part is on another process")


def _scan(
    decay: Tensor,
    update: Tensor,
    h_0: Tensor | None,
    reset: Tensor | None,
    reverse: bool,
    initial_state: Tensor | None,
    group: "ProcessGroup | None",
) -> tuple[Tensor, Tensor]:
    """The recurrence, whose resets set the state to ``initial_state``, or to zero; every state and the last one."""
    if initial_state is not None and h_0 is not None:
        # The difference from the initial state is reset to zero.
        update, h_0 = update - (1 - decay) * initial_state, h_0 - initial_state
        h, state = _scan(decay, update, h_0, reset, reverse, None, group)
        return h + initial_state, state + initial_state
    if group is not None:
        h, state = sharded_scan(decay, update, h_0, group=group, reset=reset)
    else:
        h = linear_scan(decay, update, h_0, reset=reset, reverse=reverse)
        state = last_state(h, reverse, h_0)
    return h, state
