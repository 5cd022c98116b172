"""Baselines of minGRU and minLSTM for which PyTorch has no layer.

The Transformer is not the package's attention mixer, which adds rotary positions and makes a new cache at every step to
keep gradients: a baseline of speed writes into a cache that it allocated before, as inference engines do.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.ops.reference import log_space_scan


class TwoLinear(nn.Module):
    """The two matrix products of a minGRU layer alone."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate, self.candidate = (nn.Linear(dim, dim) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, length, dim) to two of the same."""
        return [self.gate(x), self.candidate(x)]


class ThreeLinear(TwoLinear):
    """The three matrix products of a minLSTM layer alone."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.forget = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, length, dim) to three of the same."""
        return [*super().forward(x), self.forget(x)]


class LogSpaceMinGRU(TwoLinear):
    """minGRU computed as the paper does: the same two products, then the log-space scan."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, length, dim) to the same."""
        return log_space_scan(*super().forward(x))


class GRUCellLoop(nn.Module):
    """GRU as a Python loop over the steps; the paper measures against such a loop of plain operations."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(dim, dim)

    def forward(self, x: Tensor, reset: Tensor | None = None) -> Tensor:
        """(batch, length, dim) to the same; ``reset``, (batch, length), sets the state before a step to zero."""
        h = x.new_zeros(x.shape[0], x.shape[2])
        states = []
        for t, x_t in enumerate(x.unbind(1)):
            h = self.cell(x_t, h if reset is None else h.masked_fill(reset[:, t, None], 0))
            states.append(h)
        return torch.stack(states, 1)


def head_size(dim: int) -> int:
    """64, or the width where 64 does not divide it."""
    return 64 if dim % 64 == 0 else dim


class CausalAttention(nn.Module):
    """Causal self-attention with heads of 64, or a single one where 64 does not divide the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.size = head_size(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cache: Tensor | None = None, position: int = 0) -> Tensor:
        """(batch, length, dim) to the same.

        Args:
            x: The steps from ``position`` on.
            cache: Keys and values of earlier steps, to which those of ``x`` are added, (2, batch, heads, capacity,
                head_size).
            position: Number of steps that the cache holds.
        """
        length = x.shape[1]
        q, k, v = (part.unflatten(-1, (-1, self.size)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if cache is not None:
            cache[0, :, :, position : position + length] = k
            cache[1, :, :, position : position + length] = v
            k, v = cache[:, :, :, : position + length]
        mask = None
        if position and length > 1:
            mask = torch.ones(length, position + length, dtype=torch.bool, device=x.device).tril(position)
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=position == 0)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class CachedAttention(nn.Module):
    """Layers of causal attention one after the other, with a cache of keys and values that is written in place.

    Args:
        dim: Width.
        depth: Number of layers.
    """

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CausalAttention(dim) for _ in range(depth))

    def read(self, x: Tensor, extra_steps: int) -> tuple[Tensor, int]:
        """The cache after a context, (batch, length, dim), with space for further steps, and its length."""
        batch, length, dim = x.shape
        size = head_size(dim)
        shape = len(self.layers), 2, batch, dim // size, length + extra_steps, size
        caches = x.new_zeros(shape)
        self(x, (caches, 0))
        return caches, length

    def forward(self, x: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        """(batch, length, dim) to the same, and the state after it, in the same memory."""
        caches, position = state
        for attention, cache in zip(self.layers, caches, strict=True):
            x = attention(x, cache, position)
        return x, (caches, position + x.shape[1])

    def step(self, x_t: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        """The same for one step, (batch, dim)."""
        y, state = self(x_t.unsqueeze(1), state)
        return y.squeeze(1), state


class StackedCells(nn.Module):
    """``nn.GRUCell`` or ``nn.LSTMCell`` in every layer, PyTorch's modules for a single step.

    A context is read by the ``nn.GRU`` or ``nn.LSTM`` that has the same weights.

    Args:
        kind: Which of the two.
        dim: Features of input and state.
        depth: Number of layers.
    """

    def __init__(self, kind: Literal["GRU", "LSTM"], dim: int, depth: int) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(dim, dim, depth, batch_first=True)
        self.cells = nn.ModuleList(getattr(nn, f"{kind}Cell")(dim, dim) for _ in range(depth))
        for layer, cell in enumerate(self.cells):
            for name, _ in list(cell.named_parameters()):
                setattr(cell, name, getattr(self.rnn, f"{name}_l{layer}"))

    def read(self, x: Tensor) -> list[Any]:
        """The state of every layer after a context, (batch, length, dim): h, or h and c."""
        _, state = self.rnn(x)
        return list(state) if isinstance(state, Tensor) else list(zip(*state, strict=True))

    def step(self, x_t: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """One step, (batch, dim) and a state to the same."""
        after = []
        for cell, before in zip(self.cells, state, strict=True):
            now = cell(x_t, before)
            x_t = now if isinstance(now, Tensor) else now[0]
            after.append(now)
        return x_t, after


class GRULanguageModel(nn.Module):
    """Embedding, a stack of ``nn.GRU`` and a head, called like a ``LanguageTask``."""

    def __init__(self, vocabulary: int, dim: int, depth: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, dim)
        self.rnn = nn.GRU(dim, dim, depth, batch_first=True)
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def initial_state(self, batch_size: int) -> Tensor:
        """(depth, batch, dim) of zeros."""
        return self.head.weight.new_zeros(self.rnn.num_layers, batch_size, self.rnn.hidden_size)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of (batch, length) tokens, and the state after them."""
        y, state = self.rnn(self.encoder(tokens), state)
        return self.head(y), state

    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The same for (batch,) tokens of one step."""
        logits, state = self(token.unsqueeze(1), state)
        return logits.squeeze(1), state


class Decoder(nn.Module):
    """A pre-norm Transformer with a cache of keys and values, called like a ``LanguageTask``.

    It has no encoding of positions, which would cost next to nothing, and no gradients: the cache is written in place.

    Args:
        vocabulary: Number of different tokens.
        dim: Width.
        depth: Number of blocks.
        mlp_ratio: Hidden units of each MLP per channel.
    """

    def __init__(self, vocabulary: int, dim: int, depth: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, dim)
        self.attentions = nn.ModuleList(CausalAttention(dim) for _ in range(depth))
        hidden = mlp_ratio * dim
        mlps = (nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(depth))
        self.mlps = nn.ModuleList(mlps)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * depth + 1))
        self.head = nn.Linear(dim, vocabulary, bias=False)

    def initial_state(self, batch_size: int, capacity: int) -> tuple[Tensor, int]:
        """A cache for so many steps, (depth, 2, batch, heads, capacity, head_size), and the number that it holds, 0."""
        dim = self.encoder.embedding_dim
        size = head_size(dim)
        return self.head.weight.new_zeros(len(self.mlps), 2, batch_size, dim // size, capacity, size), 0

    def forward(self, tokens: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        """Logits of (batch, length) tokens, and the state after them, in the same memory."""
        caches, position = state
        x = self.encoder(tokens)
        *norms, last = self.norms
        layers = zip(self.attentions, self.mlps, caches, norms[::2], norms[1::2], strict=True)
        for attention, mlp, cache, norm, mlp_norm in layers:
            x = x + attention(norm(x), cache, position)
            x = x + mlp(mlp_norm(x))
        return self.head(last(x)), (caches, position + tokens.shape[1])

    def step(self, token: Tensor, state: tuple[Tensor, int]) -> tuple[Tensor, tuple[Tensor, int]]:
        """The same for (batch,) tokens of one step."""
        logits, state = self(token.unsqueeze(1), state)
        return logits.squeeze(1), state
