"""The attention mixer, as in a Transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.marks import mark_maps
from minrnn_lightning.nn.mixers.base import Mixer, hidden_size, is_exporting
from minrnn_lightning.nn.state import zero_state
from minrnn_lightning.ops.eager import state_dtype

HEAD = 64  # channels of a head by default

Cache = tuple[Tensor, Tensor, Tensor]


class AttentionMixer(Mixer):
    """Causal multi-head attention with rotary positions; with the MLP of a block, a GPT.

    The state is (keys, values, visible): the keys before their rotation and the values of the steps so far, (batch,
    steps, kv_heads, channels of a head), and which of them belong to the current sequence, bool (batch, steps). It
    grows with every step; with a ``window`` it holds that many steps and does not grow. Positions are counted from its
    start, so that they never grow beyond it. Sources: attention https://arxiv.org/abs/1706.03762, rotary positions
    https://arxiv.org/abs/2104.09864, grouped queries https://arxiv.org/abs/2305.13245, the sliding window
    https://arxiv.org/abs/2004.05150.

    Args:
        dim: Width of input and output.
        expansion: Width of all heads together, per channel of the input.
        heads: Number of heads; if None, as many of at least 64 channels as divide the width, at least one.
        kv_heads: Number of heads of keys and values, each shared by heads / kv_heads queries; ``heads`` if None.
        window: Number of steps that a step attends to, including its own; all before it if None.
        dropout: Probability of dropping an attention weight, in training.
        bias: Whether the linear maps have a bias.
        base: Steps, over 2π, of the slowest rotation.

    Raises:
        InputError: The heads do not divide the width into even parts, kv_heads does not divide the heads, or a value
            is out of range.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        heads: int | None = None,
        kv_heads: int | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        width = hidden_size(dim, expansion)
        heads = _default_heads(width) if heads is None else heads
        kv_heads = heads if kv_heads is None else kv_heads
        if heads < 1 or width % (2 * heads):
            raise InputError(f"heads must divide the width {width} into even parts, got heads={heads}")
        if kv_heads < 1 or heads % kv_heads:
            raise InputError(f"kv_heads must divide the {heads} heads, got kv_heads={kv_heads}")
        if window is not None and window < 1:
            raise InputError(f"window must be at least 1 step, or none for all, got {window}")
        if base <= 0:
            raise InputError(f"base must be above 0, got {base}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {dropout}")
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.window, self.dropout, self.base = window, dropout, base
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=bias)
        if heads == kv_heads:
            mark_maps(self.qkv.weight, 3)
        self.out = nn.Linear(width, dim, bias=bias)

    def mix(self, x: Tensor, state: Cache | None, reset: Tensor | None) -> tuple[Tensor, Cache]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        blocks = None if is_exporting() else self.window  # their number would fix the length
        return self._mix(x, self.initial_state(x.shape[0]) if state is None else state, reset, blocks)

    def mix_step(self, x_t: Tensor, state: Cache) -> tuple[Tensor, Cache]:
        """One step of ``forward``: (batch, dim) and a state to the same, at a cost proportional to the cached steps."""
        y, state = self._mix(x_t.unsqueeze(1), state, None, None)
        return y.squeeze(1), state

    def initial_state(self, batch_size: int) -> Cache:
        """No step, or a window of steps that are not visible."""
        steps = self.window or 0
        empty = zero_state(self.out.weight, batch_size, steps, self.kv_heads, self.head_dim)
        return empty, empty.clone(), torch.zeros(batch_size, steps, dtype=torch.bool, device=empty.device)

    def _mix(self, x: Tensor, state: Cache, reset: Tensor | None, block: int | None) -> tuple[Tensor, Cache]:
        """Attend to the cached steps and to x, in blocks of that many queries or all at once."""
        batch, length, _ = x.shape
        heads = torch.unflatten(self.qkv(x), -1, (-1, self.head_dim))
        q, k, v = torch.split(heads, [self.heads, self.kv_heads, self.kv_heads], 2)
        past = state[0].shape[1]
        k, v = torch.cat([state[0].to(k.dtype), k], 1), torch.cat([state[1].to(v.dtype), v], 1)
        sequence = x.new_zeros(batch, length, dtype=torch.long) if reset is None else reset.cumsum(1)
        sequence = torch.cat([state[2].long() - 1, sequence], 1)  # -1: not visible, 0: the sequence of the state
        kept = 0 if self.window is None else length
        wide = state_dtype(k.dtype)
        state = k[:, kept:].to(wide), v[:, kept:].to(wide), (sequence == sequence[:, -1:])[:, kept:]
        if block is None:
            y = self._attend(q, k, v, None if past == 0 and reset is None else sequence)
        else:
            pairs = (_pairs(_blocks(each, block)).flatten(0, 1) for each in (k, v, sequence))  # as part of the batch
            y = self._attend(_blocks(q, block).flatten(0, 1), *pairs)
            y = torch.unflatten(y, 0, (batch, -1)).flatten(1, 2)[:, :length]
        return self.out(y.flatten(2)), state

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, sequence: Tensor | None) -> Tensor:
        """Attend from the last steps of a frame to those before them that are of the same sequence.

        Args:
            q: (frames, queries, heads, head_dim).
            k: (frames, steps, kv_heads, head_dim).
            v: Like ``k``.
            sequence: The sequence that a step belongs to, (frames, steps); None if there is one, and a query for each
                of its steps.
        """
        queries, steps = q.shape[1], k.shape[1]
        position = torch.arange(steps, device=q.device)
        q, k = self._rotate(q, position[steps - queries :]), self._rotate(k, position)
        mask = None
        if sequence is not None:
            distance = position[steps - queries :, None] - position
            near = (distance >= 0) & (distance < (self.window or steps))
            mask = (near & (sequence[:, steps - queries :, None] == sequence[:, None])).unsqueeze(1)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
            enable_gqa=self.kv_heads < self.heads,
        )
        return y.transpose(1, 2)

    def _rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """Rotate channels (i, i + half) by angles proportional to the position, products then depend on distances."""
        half = self.head_dim // 2
        rate = self.base ** (-torch.arange(half, dtype=state_dtype(x.dtype), device=x.device) / half)
        angle = position[:, None, None] * rate
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        one, two = x.chunk(2, -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)


def _blocks(x: Tensor, steps: int) -> Tensor:
    """(batch, length, ...) in blocks of that many steps, the last one padded: (batch, blocks, steps, ...)."""
    blocks = (x.shape[1] + steps - 1) // steps
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, blocks * steps - x.shape[1]))
    return x.reshape(x.shape[0], blocks, steps, *x.shape[2:])


def _pairs(blocks: Tensor) -> Tensor:
    """Each block but the first behind the one before it: then twice the steps."""
    return torch.cat([blocks[:, :-1], blocks[:, 1:]], 2)


def _default_heads(width: int) -> int:
    """The most heads of at least ``HEAD`` channels that divide the width into even parts."""
    return next((heads for heads in range(width // HEAD, 1, -1) if width % (2 * heads) == 0), 1)
