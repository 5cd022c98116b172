"""What the mixers with a matrix for a state share: projections, short convolution, norm and output gate."""

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size
from minrnn_lightning.ops.eager import state_dtype

HEAD = 32  # channels of a head by default
EPS = 1e-6  # added to mean squares before their root is taken

State = tuple[Tensor, ...]


class MatrixStateMixer(Mixer):
    """W_o [RMSNorm(y) ⊙ SiLU(W_g x)], with y read by queries from a matrix for each head, which keys and values change.

    Queries, keys and values are SiLU(conv(W x)); without a convolution they are W x. The norm is over the channels of a
    head. All of the recurrence is in float32 (float64 for float64 inputs). The state is the last inputs of the
    convolution, (batch, d_conv − 1, channels), where there is one, and the matrices, (batch, heads, key_size,
    value_size).

    Args:
        dim: Width of input and output.
        expansion: Width of the values of all heads together, per channel of the input.
        heads: Number of heads; if None, as many of at least 32 values as divide the width, at least one.
        key_size: Channels of a key and a query; as many as of a value if None.
        d_conv: Steps that an output of the convolution depends on; 0 leaves it out.
        writes: Keys and values of a head at each step.
        values: Whether there are values; else they are zero.

    Raises:
        InputError: The heads do not divide the width, or a size is out of range.
    """

    has_convolution = True

    def __init__(
        self,
        dim: int,
        expansion: float,
        *,
        heads: int | None,
        key_size: int | None,
        d_conv: int,
        writes: int = 1,
        values: bool = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        width = hidden_size(dim, expansion)
        heads = next(n for n in range(max(1, width // HEAD), 0, -1) if width % n == 0) if heads is None else heads
        if heads < 1 or width % heads:
            raise InputError(f"heads must divide the width {width}, got heads={heads}")
        key_size = width // heads if key_size is None else key_size
        for name, size, least in (("key_size", key_size, 1), ("d_conv", d_conv, 0)):
            if size < least:
                raise InputError(f"{name} must be at least {least}, got {size}")
        self.heads, self.key_size, self.value_size, self.writes = heads, key_size, width // heads, writes
        self.q_proj = nn.Linear(dim, heads * key_size, bias=False)
        self.k_proj = nn.Linear(dim, heads * writes * key_size, bias=False)
        self.v_proj = nn.Linear(dim, heads * writes * self.value_size, bias=False) if values else None
        channels = (1 + writes) * heads * key_size + writes * width * values
        self.conv = CausalConv(channels, d_conv) if d_conv else None
        self.norm = nn.Parameter(torch.ones(self.value_size))
        self.output_gate = nn.Linear(dim, width, bias=False)
        self.out_proj = nn.Linear(width, dim, bias=False)

    @abstractmethod
    def recurrence(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, before: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is read at each step, and the last state.

        Args:
            x: The input of the mixer, (batch, length, dim).
            q: Queries, (batch, heads, length, key_size).
            k: Keys, (batch, heads, length, writes, key_size).
            v: Values, (batch, heads, length, writes, value_size).
            before: The state, (batch, heads, key_size, value_size).
            reset: Bool (batch, length).

        Returns:
            (batch, heads, length, value_size), and the state.
        """

    @abstractmethod
    def recurrence_step(self, x_t: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of ``recurrence``, whose arguments and results it has without the length."""

    def mix(self, x: Tensor, state: State | None, reset: Tensor | None) -> tuple[Tensor, State]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        *window, before = self.initial_state(x.shape[0]) if state is None else state
        channels = self._project(x)
        if self.conv is not None:
            channels, *window = self.conv(channels, *window, reset)
            channels = F.silu(channels)
        q, k, v = (each.transpose(1, 2) for each in self._heads(channels))
        with _no_autocast(x):
            y, after = self.recurrence(x, q, k, v, before, reset)
            y = self._normalized(y.transpose(1, 2))
        return self._gated(y, x), (*window, after)

    def mix_step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of ``forward``: (batch, dim) and the state to the same."""
        *window, before = state
        channels = self._project(x_t)
        if self.conv is not None:
            channels, *window = self.conv.step(channels, *window)
            channels = F.silu(channels)
        q, k, v = self._heads(channels)
        with _no_autocast(x_t):
            y, after = self.recurrence_step(x_t, q, k, v, before)
            y = self._normalized(y)
        return self._gated(y, x_t), (*window, after)

    def initial_state(self, batch_size: int) -> State:
        """Zeros: (batch, d_conv − 1, channels) and (batch, heads, key_size, value_size)."""
        shape = batch_size, self.heads, self.key_size, self.value_size
        matrices = self.norm.new_zeros(shape, dtype=state_dtype(self.norm.dtype))
        return (matrices,) if self.conv is None else (self.conv.initial_state(batch_size), matrices)

    def _project(self, x: Tensor) -> Tensor:
        """The channels of queries, keys and values, (..., channels)."""
        projections = [self.q_proj, self.k_proj] + ([] if self.v_proj is None else [self.v_proj])
        return torch.cat([projection(x) for projection in projections], -1)

    def _heads(self, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., heads, key_size), keys and values (..., heads, writes, size), in the type of the state."""
        channels = channels.to(state_dtype(channels.dtype))
        queries, keys = self.q_proj.out_features, self.k_proj.out_features
        q = torch.unflatten(channels[..., :queries], -1, (self.heads, -1))
        k = torch.unflatten(channels[..., queries : queries + keys], -1, (self.heads, self.writes, -1))
        if self.v_proj is None:
            return q, k, k.new_zeros(*k.shape[:-1], self.value_size)
        return q, k, torch.unflatten(channels[..., queries + keys :], -1, (self.heads, self.writes, -1))

    def _normalized(self, y: Tensor) -> Tensor:
        """RMSNorm of (..., heads, value_size), as (..., heads · value_size)."""
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * self.norm.to(y.dtype)
        return y.flatten(-2)

    def _gated(self, y: Tensor, x: Tensor) -> Tensor:
        """The output gate and the linear map back."""
        gate = F.silu(self.output_gate(x))
        gated: Tensor = self.out_proj(y.to(gate.dtype) * gate)
        return gated


def in_state_dtype(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear map with a bias, computed in the type of the state."""
    dtype = state_dtype(x.dtype)
    return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Products of matrices in the type of their factors."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
