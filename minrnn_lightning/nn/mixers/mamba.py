"""The Mamba mixer: a state-space model whose step size, input and output weights depend on the input."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.marks import mark_maps, undecayed
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size
from minrnn_lightning.nn.mixers.selective_scan import selective_scan
from minrnn_lightning.nn.mixers.ssm import log_step_sizes
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
        self.dim = dim
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
