"""The scan in plain PyTorch: runs on every device and type, in about 2·√length tensor operations."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

STORAGE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of the running state: float64 for float64 sequences, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def candidate(v: Tensor, kind: str) -> Tensor:
    """The candidate state c(v): the paper's g for ``positive``, v otherwise."""
    return torch.where(v >= 0, v + 0.5, torch.sigmoid(v)) if kind == "positive" else v


def candidate_slope(v: Tensor, kind: str) -> Tensor:
    """c′(v); at v = 0 the slope from above, which is 1."""
    if kind != "positive":
        return torch.ones_like(v)
    s = torch.sigmoid(v)
    return torch.where(v >= 0, 1.0, s * (1 - s))


def gate_logit(k: Tensor, f: Tensor | None) -> Tensor:
    """The logit of z: that of minGRU's gate, or, with a forget gate, of σ(k) / (σ(k) + σ(f))."""
    return k if f is None else F.logsigmoid(k) - F.logsigmoid(f)


def forward(
    k: Tensor, v: Tensor, f: Tensor | None, initial: Tensor | None, reset: Tensor | None, kind: str, reverse: bool
) -> Tensor:
    """Every state of the scan, (batch, length, dim), in the type of ``k``."""
    dtype = k.dtype
    k, v, f, reset = (_forward_in_time(x, reverse) for x in (k, v, f, reset))
    a, b = _transition(k, v, f, reset, kind)
    h: Tensor = _forward_in_time(recurrence(a, b, initial), reverse)
    return h.to(dtype).contiguous()


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
    dtype = k.dtype
    grad, k, v, f, h, reset = (_forward_in_time(x, reverse) for x in (grad, k, v, f, h, reset))
    a, _ = _transition(k, v, f, reset, kind)
    k, v, h, grad = (x.to(a.dtype) for x in (k, v, h, grad))
    first = torch.zeros_like(h[:, :1]) if initial is None else initial.unsqueeze(1).to(h.dtype)
    h_prev = torch.cat([first, h], 1)[:, : h.shape[1]]
    if reset is not None:
        h_prev = h_prev.masked_fill(reset.unsqueeze(-1), 0)

    a_next = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)[:, : a.shape[1]]
    g = recurrence(a_next.flip(1), grad.flip(1), None).flip(1)  # G_t = ∂L/∂h_t + a_{t+1} · G_{t+1}
    d_f = torch.empty_like(h[:, :0])
    if kind == "linear":
        d_k, d_v = g * h_prev, g
    else:
        f = None if f is None else f.to(a.dtype)
        z = torch.sigmoid(gate_logit(k, f))
        d_k = g * (candidate(v, kind) - h_prev) * z * (1 - z)
        d_v = g * z * candidate_slope(v, kind)
        if f is not None:
            d_k, d_f = d_k * torch.sigmoid(-k), -d_k * torch.sigmoid(-f)
    d_initial = (a * g)[:, :1].sum(1)
    d_k, d_v, d_f = (_forward_in_time(x, reverse).to(dtype).contiguous() for x in (d_k, d_v, d_f))
    return d_k, d_v, d_f, d_initial


def recurrence(a: Tensor, b: Tensor, initial: Tensor | None) -> Tensor:
    """h_t = a_t · h_{t-1} + b_t: √length blocks at once, then the carry from block to block."""
    batch, length, dim = b.shape
    width = max(1, math.isqrt(length))
    blocks = -(-length // width)
    pad = (0, 0, 0, blocks * width - length)
    h = F.pad(b, pad).view(batch, blocks, width, dim).clone()
    product = F.pad(a, pad).view(batch, blocks, width, dim).clone()
    for t in range(1, width):
        h[:, :, t] += product[:, :, t] * h[:, :, t - 1]
        product[:, :, t] *= product[:, :, t - 1]
    carry = initial
    for block in range(blocks):
        if carry is not None:
            h[:, block] += product[:, block] * carry.unsqueeze(1)
        carry = h[:, block, -1]
    return h.view(batch, blocks * width, dim)[:, :length]


def _transition(k: Tensor, v: Tensor, f: Tensor | None, reset: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """The a and b of h_t = a_t · h_{t-1} + b_t, in the type of the state."""
    wide = state_dtype(k.dtype)
    a, b = k.to(wide), v.to(wide)
    if kind != "linear":
        logit = gate_logit(a, None if f is None else f.to(wide))
        a, b = torch.sigmoid(-logit), torch.sigmoid(logit) * candidate(b, kind)
    return (a if reset is None else a.masked_fill(reset.unsqueeze(-1), 0)), b


def _forward_in_time(x: Tensor | None, reverse: bool) -> Any:
    """The sequence in the order of the scan, and back."""
    return x.flip(1) if reverse and x is not None else x
