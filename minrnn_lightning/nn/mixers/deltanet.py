"""The DeltaNet mixer: a matrix for a state, in which a key's value is replaced rather than added to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.marks import undecayed
from minrnn_lightning.nn.mixers.chunkwise import delta_rule
from minrnn_lightning.nn.mixers.matrix_state import EPS, MatrixStateMixer, State, in_state_dtype
from minrnn_lightning.nn.timescale import log_timescales


class DeltaNetMixer(MatrixStateMixer):
    """Gated delta rule: S_t = a_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ, y_t = S_tᵀ q_t, for each head.

    Keys and queries have norm 1. What S returns for the key k_t moves towards v_t, by the share β_t = σ(·). Sources:
    the delta rule over sequences (Yang et al. 2024, https://arxiv.org/abs/2406.06484), with a decay a_t (Yang et al.
    2024, https://arxiv.org/abs/2412.06464). The decay is that of minGRU, 1 − σ(·), with time constants spread over the
    octaves at the start.

    A transition I − β k kᵀ is a projection for β = 1 and a reflection for β = 2. With ``negative``, β is in (0, 2), so
    that eigenvalues can be negative (Grazzi et al. 2024, https://arxiv.org/abs/2411.12537). The product of n
    ``householders`` at each step (DeltaProduct, Siems et al. 2025, https://arxiv.org/abs/2502.10297) can be any
    rotation of n dimensions: permutations of n + 1 elements need up to n. To track the product of permutations, the
    state neither decays (``gated=False``) nor is written to (``values=False``): it starts from a learned one, since the
    transitions leave zero at zero.

    Args:
        dim: Width of input and output.
        expansion: Width of the values of all heads together, per channel of the input.
        heads: Number of heads; if None, as many of at least 32 values as divide the width, at least one.
        key_size: Channels of a key and a query; as many as of a value if None.
        d_conv: Steps that an output of the convolution depends on; 0 leaves it out.
        gated: Whether the state decays.
        negative: Whether β is in (0, 2) instead of (0, 1).
        householders: Keys and values that are written one after the other at each step.
        learn_initial_state: Whether the state before the first step is learned; else it is zero.
        values: Whether values are written; without, v is 0, and the state is learned at the start and multiplied.
        timescale: The longest time constant, in steps, of the decays' initialisation.

    Raises:
        InputError: The heads do not divide the width, a size or ``timescale`` is out of range, or there are neither
            values nor a learned initial state.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        heads: int | None = None,
        key_size: int | None = None,
        d_conv: int = 4,
        gated: bool = True,
        negative: bool = False,
        householders: int = 1,
        learn_initial_state: bool = False,
        values: bool = True,
        timescale: float = 64.0,
    ) -> None:
        if householders < 1:
            raise InputError(f"householders must be at least 1, got {householders}")
        if not values and not learn_initial_state:
            raise InputError("without values the state stays as it starts, at zero; set learn_initial_state to true")
        super().__init__(
            dim, expansion, heads=heads, key_size=key_size, d_conv=d_conv, writes=householders, values=values
        )
        self.negative = negative
        self.beta_proj = nn.Linear(dim, self.heads * householders)
        self.decay_proj = None
        if gated:
            self.decay_proj = nn.Linear(dim, self.heads)
            self.decay_proj.bias = undecayed(-log_timescales(self.heads, timescale))
        shape = self.heads, self.key_size, self.value_size
        self.initial = undecayed(torch.randn(shape) / self.key_size**0.5) if learn_initial_state else None

    def recurrence(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, before: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs (batch, heads, length, value_size) and the state; see ``MatrixStateMixer``."""
        beta, log_decay = (each.transpose(1, 2) for each in self._coefficients(x))
        start = None if self.initial is None else self.initial.to(q.dtype)
        return delta_rule(_unit(q), _unit(k), v, beta, log_decay, before, reset, start=start)

    def recurrence_step(self, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (batch, heads, value_size) and the state; see ``MatrixStateMixer``."""
        beta, log_decay = self._coefficients(x_t)
        state = log_decay.exp()[..., None, None] * state
        k, v = _unit(k).unsqueeze(-1), v.unsqueeze(-2)
        for write in range(self.writes):
            key, share = k[:, :, write], beta[:, :, write, None, None]
            state = state + share * key * (v[:, :, write] - (key * state).sum(-2, keepdim=True))
        return (state * _unit(q).unsqueeze(-1)).sum(-2), state

    def initial_state(self, batch_size: int) -> State:
        """Zeros, or the learned matrices (batch, heads, key_size, value_size), after the window of the convolution."""
        *window, matrices = super().initial_state(batch_size)
        return (*window, matrices if self.initial is None else matrices + self.initial)

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """β, (..., heads, writes), and the logarithm of the decay, (..., heads)."""
        beta = (1 + self.negative) * torch.sigmoid(in_state_dtype(self.beta_proj, x))
        beta = torch.unflatten(beta, -1, (self.heads, self.writes))
        if self.decay_proj is None:
            return beta, torch.zeros_like(beta[..., 0])
        return beta, F.logsigmoid(-in_state_dtype(self.decay_proj, x))


def _unit(x: Tensor) -> Tensor:
    """Divide vectors by their norm."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)
