"""The gated minGRU mixer: minGRU behind a short convolution, with a skip, a norm and an output gate."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.functional import min_gru, min_gru_step
from minrnn_lightning.nn.marks import undecayed
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size
from minrnn_lightning.nn.timescale import log_timescales
from minrnn_lightning.ops.eager import state_dtype

EPS = 1e-5  # added to the mean square that the state is divided by

State = tuple[Tensor, Tensor]


class GatedMinGRUMixer(Mixer):
    """A minGRU with a short convolution and an output gate: y = W_o [RMSNorm(h + D·u) ⊙ SiLU(W_g x)].

    h_t = h_{t-1} + σ(k_t) · (u_t − h_{t-1}) with u = SiLU(conv(W_u x)) and k = W_2 W_1 u + b, of low rank. Convolution,
    low rank, skip D and output gate are those of "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (Gu
    & Dao 2023, https://arxiv.org/abs/2312.00752, section 3.4). One number of state for each channel, with a decay of
    one minus the weight of the input, is as in HGRN (Qin et al. 2023, https://arxiv.org/abs/2311.04823), which also has
    a norm and an output gate; Griffin's recurrent block (De et al. 2024, https://arxiv.org/abs/2402.19427, section 2.4)
    has convolution, recurrence and output gate in the same places. The norm's gain is left to the columns of W_o.

    The state is the last inputs of the convolution, (batch, d_conv − 1, inner), and h, (batch, inner), in float32
    (float64 for float64 inputs). ``delta_t`` is that of ``min_gru``; the convolution counts steps.

    Args:
        dim: Width of input and output.
        expansion: Inner channels per channel of the input.
        rank: Rank of the linear map from u to the logits of the gate.
        d_conv: Steps that an output of the convolution depends on.
        timescale: The longest time constant, in steps, of the gate's initialisation.

    Raises:
        InputError: A size or ``timescale`` is below 1.
    """

    timed = True
    has_convolution = True
    shardable = True

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        rank: int = 8,
        d_conv: int = 4,
        timescale: float = 64.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        for name, size in (("rank", rank), ("d_conv", d_conv)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        inner = hidden_size(dim, expansion)
        self.u_proj = nn.Linear(dim, inner, bias=False)  # W_u
        self.conv = CausalConv(inner, d_conv)
        self.low_proj = nn.Linear(inner, rank, bias=False)  # W_1
        self.gate_proj = nn.Linear(rank, inner)  # W_2
        self.gate_proj.bias = undecayed(-log_timescales(inner, timescale))  # b
        self.D = undecayed(torch.ones(inner))
        self.output_gate = nn.Linear(dim, inner, bias=False)  # W_g
        self.out_proj = nn.Linear(inner, dim, bias=False)  # W_o

    def mix(
        self, x: Tensor, state: State | None, reset: Tensor | None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        window, before = (None, None) if state is None else state
        u, window = self.conv(self.u_proj(x), window, reset)
        u = F.silu(u)
        h, after = min_gru(
            *(self._gate(u), u, before),
            activation="identity",
            reset=reset,
            delta_t=delta_t,
            group=self.group,
            return_state=True,
        )
        return self._gated(h, u, x), (window, after)

    def mix_step(self, x_t: Tensor, state: State, *, delta_t: Tensor | None = None) -> tuple[Tensor, State]:
        """One step of ``forward``: (batch, dim) and the state to the same."""
        window, before = state
        u, window = self.conv.step(self.u_proj(x_t), window)
        u = F.silu(u)
        h = min_gru_step(self._gate(u), u, before, activation="identity", delta_t=delta_t)
        return self._gated(h.to(u.dtype), u, x_t), (window, h)

    def initial_state(self, batch_size: int) -> State:
        """Zeros: (batch, d_conv − 1, inner) and (batch, inner)."""
        window = self.conv.initial_state(batch_size)
        return window, window.new_zeros(batch_size, window.shape[2], dtype=state_dtype(window.dtype))

    def _gate(self, u: Tensor) -> Tensor:
        """k, the logits of the gate, (..., inner)."""
        k: Tensor = self.gate_proj(self.low_proj(u))
        return k

    def _gated(self, h: Tensor, u: Tensor, x: Tensor) -> Tensor:
        """Skip, norm, output gate and the linear map back."""
        h = torch.addcmul(h, self.D.to(u.dtype), u)
        y: Tensor = self.out_proj(h * F.silu(self.output_gate(x)))
        # The RMS is one number for each step, so that dividing by it can wait until there are fewer channels.
        h = h.to(state_dtype(h.dtype))
        mean_square = torch.linalg.vecdot(h, h).unsqueeze(-1) / h.shape[-1]
        return y * torch.rsqrt(mean_square + EPS).to(y.dtype)
