"""The Mamba mixer: a state-space model whose step size, input and output weights depend on the input."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size, mark_maps
from minrnn_lightning.nn.mixers.ssm import log_step_sizes, undecayed
from minrnn_lightning.ops import linear_scan
from minrnn_lightning.ops.eager import state_dtype

State = tuple[Tensor, Tensor]


class MambaMixer(Mixer):
    """Selective state-space model (S6) behind a short convolution, gated: out(SiLU(z) · S6(SiLU(conv(u)))).

    u and z are linear in the input. S6 is h_t = exp(Δ_t A) · h_{t-1} + Δ_t B_t u_t, y_t = C_t h_t + D u_t for each of
    the inner channels, with a diagonal A = −exp(A_log) and with Δ, B and C computed from u. Source: "Mamba: Linear-Time
    Sequence Modeling with Selective State Spaces" (Gu & Dao 2023, https://arxiv.org/abs/2312.00752), sections 3.2 and
    3.4. The parameters are those of the authors' layer, apart from the layout of the convolution's weights.

    The state is the last inputs of the convolution, (batch, d_conv − 1, inner), and h, (batch, inner, state_size), in
    float32 (float64 for float64 inputs).

    Args:
        dim: Width of input and output.
        expansion: Inner channels per channel of the input; the paper has 2.
        state_size: Numbers in h for each inner channel.
        d_conv: Steps that the convolution sees.
        dt_rank: Rank of the linear map from u to Δ; dim/16, rounded up, if None.

    Raises:
        InputError: A size is below 1.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        state_size: int = 16,
        d_conv: int = 4,
        dt_rank: int | None = None,
    ) -> None:
        super().__init__()
        rank = math.ceil(dim / 16) if dt_rank is None else dt_rank
        for name, size in (("state_size", state_size), ("d_conv", d_conv), ("dt_rank", rank)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        inner = hidden_size(dim, expansion)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        mark_maps(self.in_proj.weight, 2)
        self.conv = CausalConv(inner, d_conv)
        self.x_proj = nn.Linear(inner, rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = undecayed(torch.arange(1.0, state_size + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():
            dt = log_step_sizes(inner).exp()
            self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of this is dt

    def mix(self, x: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        window, before = (None, None) if state is None else state
        u, z = self.in_proj(x).chunk(2, -1)
        u, window = self.conv(u, window, reset)
        u = F.silu(u)
        dt, a, b, c = self._selected(u)
        y, h = selective_scan(u.to(dt.dtype), dt, a, b, c, before, reset)
        return self._gated(y, u, z), (window, h)

    def mix_step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of ``forward``: (batch, dim) and the state to the same."""
        window, before = state
        u, z = self.in_proj(x_t).chunk(2, -1)
        u, window = self.conv.step(u, window)
        u = F.silu(u)
        dt, a, b, c = self._selected(u)
        h = torch.exp(dt.unsqueeze(-1) * a) * before + (dt * u).unsqueeze(-1) * b.unsqueeze(1)
        return self._gated((h * c.unsqueeze(1)).sum(-1), u, z), (window, h)

    def initial_state(self, batch_size: int) -> State:
        """Zeros: (batch, d_conv − 1, inner) and (batch, inner, state_size)."""
        h = self.A_log.new_zeros(batch_size, *self.A_log.shape, dtype=state_dtype(self.A_log.dtype))
        return self.conv.initial_state(batch_size), h

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Δ (..., inner), A (inner, state_size), B and C (..., state_size), in the type of the state."""
        size, dtype = self.A_log.shape[1], state_dtype(u.dtype)
        low, b, c = self.x_proj(u).split([self.dt_proj.in_features, size, size], -1)
        dt = F.softplus(F.linear(low, self.dt_proj.weight).to(dtype) + self.dt_proj.bias.to(dtype))
        return dt, -self.A_log.to(dtype).exp(), b.to(dtype), c.to(dtype)

    def _gated(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """The skip, the gate and the linear map back."""
        gated: Tensor = self.out_proj(((y + self.D * u) * F.silu(z)).to(z.dtype))
        return gated


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(Δ_t A) · h_{t-1} + Δ_t B_t u_t, y_t = C_t h_t, with A diagonal for each channel.

    One number of the state at a time, so that memory does not grow with ``state_size``; backward computes the states
    again. Where ``mamba_ssm`` is installed, its kernel runs on CUDA tensors unless there is an initial state, a reset
    or ``torch.compile``, none of which it takes; the final state that it returns carries no gradient.

    Args:
        u: Inputs, (batch, length, inner).
        dt: Δ, the step sizes, (batch, length, inner).
        a: A, below zero, (inner, state_size).
        b: B, (batch, length, state_size).
        c: C, (batch, length, state_size).
        initial: The state before the first step, (batch, inner, state_size); zeros if None.
        reset: Bool (batch, length), True where the state before that step is replaced by zeros.

    Returns:
        y, (batch, length, inner), and the state after the last step, (batch, inner, state_size).
    """
    fits = u.is_cuda and u.dtype == torch.float32 and initial is None and reset is None
    kernel = _mamba_ssm() if fits and not torch.compiler.is_compiling() else None
    if kernel is not None:
        u, dt, b, c = (x.transpose(1, 2) for x in (u, dt, b, c))
        y, h = kernel(u, dt, a, b, c, return_last_state=True)
        return y.transpose(1, 2), h.detach()
    run: Callable[..., tuple[Tensor, Tensor]] = functools.partial(
        checkpoint, _scan_one, use_reentrant=False, preserve_rng_state=False
    )
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        run = _scan_one  # torch.func refuses the hooks with which checkpoint saves memory
    y, final = torch.zeros_like(u), []
    for n in range(a.shape[1]):
        one = a[:, n], b[..., n : n + 1], c[..., n : n + 1], None if initial is None else initial[..., n]
        part, h = run(u, dt, *one, reset)
        y = y + part
        final.append(h)
    return y, torch.stack(final, -1)


def _scan_one(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What one number of the state adds to y, and its value after the last step."""
    h = linear_scan(torch.exp(dt * a), dt * b * u, initial, reset=reset)
    return c * h, h[:, -1].clone()  # a view would keep all of h


@functools.cache
def _mamba_ssm() -> Callable[..., Any] | None:
    """The fused scan of ``mamba_ssm``, or None where that is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    kernel: Callable[..., Any] = selective_scan_fn
    return kernel
