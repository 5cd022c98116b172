"""The matrix minGRU mixer: minGRU with a matrix for a state, which stores values under keys."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.nn.marks import undecayed
from minrnn_lightning.nn.mixers.chunkwise import linear_attention
from minrnn_lightning.nn.mixers.matrix_state import MatrixStateMixer, in_state_dtype
from minrnn_lightning.nn.timescale import log_timescales


class MatrixMinGRUMixer(MatrixStateMixer):
    """A minGRU with a matrix for a state: S_t = (1 − z_t) S_{t−1} + z_t k_t v_tᵀ, y_t = S_tᵀ q_t, for each head.

    z_t = σ(·) is one number for each head and step. The candidate of minGRU is an outer product, so that a query finds
    the value that was written under its key, which no state of single channels can do for several keys. It is linear
    attention with the decay of a scalar gate, as in Mamba-2 (Dao & Gu 2024, https://arxiv.org/abs/2405.21060), with
    decay and input weight tied as in HGRN2 (Qin et al. 2024, https://arxiv.org/abs/2404.07904); GLA (Yang et al. 2023,
    https://arxiv.org/abs/2312.06635) has a decay for each channel of the key instead.

    Args:
        dim: Width of input and output.
        expansion: Width of the values of all heads together, per channel of the input.
        heads: Number of heads; if None, as many of at least 32 values as divide the width, at least one.
        key_size: Channels of a key and a query; as many as of a value if None.
        d_conv: Steps that an output of the convolution depends on; 0 leaves it out.
        timescale: The longest time constant, in steps, of the gates' initialisation.

    Raises:
        InputError: The heads do not divide the width, or a size or ``timescale`` is out of range.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        heads: int | None = None,
        key_size: int | None = None,
        d_conv: int = 4,
        timescale: float = 64.0,
    ) -> None:
        super().__init__(dim, expansion, heads=heads, key_size=key_size, d_conv=d_conv)
        self.gate_proj = nn.Linear(dim, self.heads)
        self.gate_proj.bias = undecayed(-log_timescales(self.heads, timescale))

    def recurrence(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, before: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See ``MatrixStateMixer``."""
        gate = in_state_dtype(self.gate_proj, x).transpose(1, 2)
        k, v = k.squeeze(3), torch.sigmoid(gate).unsqueeze(-1) * v.squeeze(3)
        return linear_attention(q, k, v, F.logsigmoid(-gate), before, reset)

    def recurrence_step(self, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See ``MatrixStateMixer``."""
        z = torch.sigmoid(in_state_dtype(self.gate_proj, x_t))[..., None, None]
        state = (1 - z) * state + z * k.mT * v
        return (state * q.unsqueeze(-1)).sum(-2), state
