"""The scan in plain PyTorch: runs on every device and type, in about 2·√length tensor operations."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LinearScan = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]  # of a, b, the initial state and reverse
STORAGE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the running state: float64 for float64 sequences, else float32.

    Args:
        dtype: Type of the sequences.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def candidate(v: Tensor, kind: str) -> Tensor:
    """The candidate state c(v): the paper's g for ``positive``, v otherwise."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v)) if kind == "positive" else v


def candidate_slope(v: Tensor, kind: str) -> Tensor:
    """c′(v); at v = 0 the right-hand derivative, which is 1."""
    if kind != "positive":
        return torch.ones_like(v)
    s = torch.sigmoid(v)
    return torch.where(v >= 0, 1.0, s * (1 - s))


def gate_logit(k: Tensor, f: Tensor | None) -> Tensor:
    """The logit of z: that of minGRU's gate, or, with a forget gate, of σ(k) / (σ(k) + σ(f))."""
    return k if f is None else F.logsigmoid(k) - F.logsigmoid(f)


def forward(
    k: Tensor, v: Tensor, f: Tensor | None, initial: Tensor | None, reset: Tensor | None, kind: str, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Every state of the scan, (batch, length, dim), in the type of ``k``, and the last one in that of the state."""
    a, b = transition(k, v, f, reset, kind)
    h = recurrence(a, b, initial, reverse)
    final = h[:, 0 if reverse else -1].clone() if h.shape[1] else final_of_empty(k, initial)
    return h.to(k.dtype).contiguous(), final


def final_of_empty(k: Tensor, initial: Tensor | None) -> Tensor:
    """The state after no step, (batch, dim)."""
    if initial is not None:
        return initial.clone()
    return k.new_zeros(k.shape[0], k.shape[2], dtype=state_dtype(k.dtype))


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
    sequences, d_initial = vjp(recurrence, grad, k, v, f, h, initial, reset, kind, reverse)
    d_k, d_v, d_f = (x.contiguous() for x in (*sequences, torch.empty_like(k[:, :0]))[:3])
    return d_k, d_v, d_f, d_initial


def vjp(
    linear_scan: LinearScan,
    grad: Tensor,
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    h: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[list[Tensor], Tensor]:
    """The gradients of k, v and (if there is one) f, and that of the initial state, from that of every state.

    With G_t = ∂L/∂h_t + a_{t+1} · G_{t+1}, a ``linear_scan`` in the opposite direction, they are G_t · ∂h_t/∂k_t and
    so on.
    """
    a, partials = _linearized(k, v, f, h, initial, reset, kind, reverse)
    a_next = _before(a, None, not reverse)
    g = linear_scan(a_next, grad.to(a.dtype), None, not reverse)
    d_initial = (a * g)[:, -1:] if reverse else (a * g)[:, :1]
    return [(g * partial).to(k.dtype) for partial in partials], d_initial.sum(1)


def jvp(
    linear_scan: LinearScan,
    tangents: list[Tensor],
    d_initial: Tensor | None,
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    h: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> Tensor:
    """The tangent of every state, from those of k, v and (if there is one) f, and that of the initial state.

    dh_t = a_t · dh_{t-1} + ∂h_t/∂k_t · dk_t + ∂h_t/∂v_t · dv_t + …, a ``linear_scan`` with the same decay.
    """
    a, partials = _linearized(k, v, f, h, initial, reset, kind, reverse)
    update = sum((partial * tangent for partial, tangent in zip(partials, tangents, strict=True)), torch.zeros_like(a))
    return linear_scan(a, update, d_initial, reverse).to(k.dtype)


def recurrence(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> Tensor:
    """h_t = a_t · h_{t-1} + b_t: √length blocks at once, then the carry from block to block."""
    if reverse:
        return recurrence(a.flip(1), b.flip(1), initial, False).flip(1)
    batch, length, dim = b.shape
    width = max(1, math.isqrt(length))
    blocks = -(-length // width)
    pad = b.new_zeros(batch, blocks * width - length, dim)  # by F.pad, PyTorch 2.6 would need at least one channel
    h, product = (torch.cat([each, pad], 1).view(batch, blocks, width, dim) for each in (b, a))
    for t in range(1, width):
        h[:, :, t] += product[:, :, t] * h[:, :, t - 1]
        product[:, :, t] *= product[:, :, t - 1]
    carry = initial
    for block in range(blocks):
        if carry is not None:
            h[:, block] += product[:, block] * carry.unsqueeze(1)
        carry = h[:, block, -1]
    return h.view(batch, blocks * width, dim)[:, :length]


def transition(k: Tensor, v: Tensor, f: Tensor | None, reset: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """The a and b of h_t = a_t · h_{t-1} + b_t, in the type of the state."""
    wide = state_dtype(k.dtype)
    a, b = k.to(wide), v.to(wide)
    if kind != "linear":
        logit = gate_logit(a, None if f is None else f.to(wide))
        a, b = torch.sigmoid(-logit), torch.sigmoid(logit) * candidate(b, kind)
    return (a if reset is None else torch.where(reset.unsqueeze(-1), 0.0, a)), b


def _linearized(
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    h: Tensor,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """∂h_t/∂h_{t-1} = a_t of each step, and at fixed h_{t-1} ∂h_t/∂k_t, ∂h_t/∂v_t and (if there is one) ∂h_t/∂f_t."""
    a, _ = transition(k, v, f, reset, kind)
    k, v, h = (x.to(a.dtype) for x in (k, v, h))
    h_prev = _before(h, initial, reverse)
    if reset is not None:
        h_prev = h_prev.masked_fill(reset.unsqueeze(-1), 0)
    if kind == "linear":
        return a, [h_prev, torch.ones_like(v)]
    f = None if f is None else f.to(a.dtype)
    z = torch.sigmoid(gate_logit(k, f))
    to_gate, to_v = (candidate(v, kind) - h_prev) * z * (1 - z), z * candidate_slope(v, kind)
    if f is None:
        return a, [to_gate, to_v]
    return a, [to_gate * torch.sigmoid(-k), to_v, -to_gate * torch.sigmoid(-f)]


def _before(x: Tensor, first: Tensor | None, reverse: bool) -> Tensor:
    """x_{t-1} at every step, in the order of the scan; ``first``, or zeros, at its first step."""
    edge = x.new_zeros(x.shape[0], 1, x.shape[2]) if first is None else first.unsqueeze(1).to(x.dtype)
    return torch.cat([x, edge], 1)[:, 1:] if reverse else torch.cat([edge, x], 1)[:, : x.shape[1]]
