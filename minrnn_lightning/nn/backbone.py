"""Backbone: a stack of pre-norm residual blocks around any sequence mixer, trained in parallel, run step by step."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from minrnn_lightning.errors import InputError
from minrnn_lightning.memory import check_memory
from minrnn_lightning.nn.chunks import split_steps
from minrnn_lightning.nn.conv import CausalConv
from minrnn_lightning.nn.dropout import Dropout
from minrnn_lightning.nn.fused import apply_mlp, is_transformed, norm_mlp
from minrnn_lightning.nn.fused_step import fused_blocks
from minrnn_lightning.nn.mixers import MIXERS, Mixer, mixer_name
from minrnn_lightning.nn.mixers.base import is_exporting
from minrnn_lightning.nn.mixers.registry import build_mixer, check_mixer_args, find_mixer
from minrnn_lightning.nn.sequence_parallel import Shardable
from minrnn_lightning.nn.state import State, where

MOST_BLOCKS = 10_000  # more take minutes to make, whatever their width


class Block(nn.Module):
    """x + mixer(conv(norm(x))), then x + mlp(conv(norm(x))), the second convolution only if it is asked for.

    Args:
        dim: Width.
        mixer: The layer that mixes along the length.
        kernel_size: Steps of the causal convolution; 0, or a mixer with a convolution of its own, leaves it out.
        mlp_ratio: Hidden units of the MLP per channel; 0 leaves it out.
        dropout: Probability of dropping an element of what mixer and MLP add.
        mlp_kernel_size: Steps of the causal convolution before the MLP, which starts near the identity; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        mixer: Mixer,
        *,
        kernel_size: int,
        mlp_ratio: float,
        dropout: float,
        mlp_kernel_size: int = 0,
    ) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.conv = CausalConv(dim, kernel_size) if kernel_size and not mixer.has_convolution else None
        self.mixer = mixer
        self.dropout = Dropout(dropout)
        self.mlp, self.mlp_conv = None, None
        if mlp_ratio:
            hidden = round(dim * mlp_ratio)
            self.mlp_norm = nn.LayerNorm(dim)
            if mlp_kernel_size:
                self.mlp_conv = CausalConv(dim, mlp_kernel_size)
                with torch.no_grad():
                    self.mlp_conv.weight.mul_(0.2)[0].add_(1)  # near the identity
            self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(
        self, x: Tensor, state: State = None, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """(batch, length, dim) to the same, and the state after the last step."""
        before, state, *mlp_before = (None, None) if state is None else state
        if self.conv is None:
            y, before = self.mixer_norm(x), ()
        else:
            x, y, before = self.conv.after_norm(self.mixer_norm, x, before, reset)
        y, state = self.mixer(y, state, reset, **self._time(delta_t))
        x, mlp_before = self._add_mlp(self.dropout.add(x, y), mlp_before, reset)
        return x, (before, state, *mlp_before)

    def step(
        self, x_t: Tensor, state: State, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One step of ``forward``: (batch, dim) and the state to the same; ``reset`` is (batch,)."""
        if reset is not None:  # here for all mixers, since one from outside may have its own step, without resets
            state = where(reset, self.initial_state(x_t.shape[0]), state)
        before, state, *mlp_before = state
        y = self.mixer_norm(x_t)
        if self.conv is not None:
            y, before = self.conv.step(y, before)
        y, state = self.mixer.step(y, state, **self._time(delta_t))
        x_t, mlp_before = self._add_mlp_step(self.dropout.add(x_t, y), mlp_before)
        return x_t, (before, state, *mlp_before)

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step: of the convolution, () without one, the mixer, and the MLP's convolution."""
        before = () if self.conv is None else self.conv.initial_state(batch_size)
        mlp_before = () if self.mlp_conv is None else (self.mlp_conv.initial_state(batch_size),)
        return before, self.mixer.initial_state(batch_size), *mlp_before

    def _time(self, delta_t: Tensor | None) -> dict[str, Tensor]:
        """The keyword of a mixer that is ``timed``; none where no times are given."""
        if delta_t is None:
            return {}
        if not self.mixer.timed:
            timed = ", ".join(name for name, mixer in MIXERS.items() if getattr(mixer, "timed", False))
            raise InputError(f"{type(self.mixer).__name__} takes no delta_t; the mixers that do are {timed}")
        return {"delta_t": delta_t}

    def _add_mlp(self, x: Tensor, before: list[Tensor], reset: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Add mlp(conv(norm(x))) to x; ``before`` holds the state of the convolution, or nothing."""
        if self.mlp is None:
            return x, []
        if self.mlp_conv is None:
            x, y = norm_mlp(x, self.mlp_norm, self.mlp)
            return self.dropout.add(x, y), []
        x, y, after = self.mlp_conv.after_norm(self.mlp_norm, x, before[0] if before else None, reset)
        return self.dropout.add(x, apply_mlp(y, self.mlp)), [after]

    def _add_mlp_step(self, x_t: Tensor, before: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One step of ``_add_mlp``."""
        if self.mlp is None or self.mlp_conv is None:
            return self._add_mlp(x_t, [], None)
        y, after = self.mlp_conv.step(self.mlp_norm(x_t), *before)
        return self.dropout.add(x_t, self.mlp(y)), [after]


class Backbone(Shardable):
    """A stack of ``depth`` blocks and a final norm.

    Args:
        dim: Width of the stack.
        depth: Number of blocks.
        mixer: A name in ``MIXERS``, a subclass of ``Mixer``, the path of one (``"my_package.MyMixer"``), or a list of
            any of these that is repeated to the depth.
        mixer_args: Further arguments of the mixers, by name or path: ``{"attention": {"window": 128}}``.
        expansion: Hidden units of a mixer per channel.
        kernel_size: Steps of the causal convolution before each mixer; 0 leaves it out. A mixer that has a
            convolution of its own gets none.
        mlp_ratio: Hidden units of each MLP per channel; 0 leaves it out.
        dropout: Probability of dropping an element of what mixers and MLPs add.
        chunk: Steps of a sequence that are computed at a time, for long ones: beside input and output, only the states
            between chunks are stored, and backward computes all but the last once more. The gradient is that of the
            complete sequence. None computes all steps at once.
        mlp_kernel_size: Steps of a causal convolution before each MLP, near the identity at first; 0 leaves it out.
            RWKV's channel mixing looks back by one step (https://arxiv.org/abs/2305.13048, section 3.1).

    Raises:
        InputError: A size is out of range, a mixer or one of its arguments unknown, or chunks are asked of a mixer that
            is bidirectional.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        mixer: str | type[Mixer] | Sequence[str | type[Mixer]] = "mingru",
        *,
        mixer_args: Mapping[str, Mapping[str, Any]] | None = None,
        expansion: float = 1.0,
        kernel_size: int = 4,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        chunk: int | None = None,
        mlp_kernel_size: int = 0,
    ) -> None:
        super().__init__()
        if chunk is not None and not isinstance(chunk, int):
            raise InputError(f"chunk must be a whole number, or null for none, got {chunk!r}")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk must be at least 1, or null for none, got {chunk}")
        pattern = [mixer] if isinstance(mixer, str | type) else list(mixer or [])
        _check(dim=dim, depth=depth, expansion=expansion)
        if kernel_size < 0 or mlp_ratio < 0:
            raise InputError(f"kernel_size and mlp_ratio must be at least 0, got {kernel_size} and {mlp_ratio}")
        if mlp_kernel_size < 0 or (mlp_kernel_size and not mlp_ratio):
            raise InputError(
                "mlp_kernel_size must be at least 0, and 0 where mlp_ratio 0 leaves out the MLPs, "
                f"got {mlp_kernel_size} and mlp_ratio {mlp_ratio}"
            )
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, got {dropout}")
        if depth > MOST_BLOCKS:
            raise InputError(f"depth must be at most {MOST_BLOCKS}, got {depth}")
        if torch.get_default_device().type != "meta":  # which takes no memory
            sizes = {"depth": depth, "dim": dim, "expansion": expansion}
            sizes |= {"kernel_size": kernel_size, "mlp_ratio": mlp_ratio, "mlp_kernel_size": mlp_kernel_size}
            what = ", ".join(f"{name} {size}" for name, size in sizes.items())
            size = dim * (dim * (expansion + 2 * mlp_ratio) + kernel_size + mlp_kernel_size)
            check_memory(4 * depth * size, f"the weights for {what}")
        if not 1 <= len(pattern) <= depth:
            raise InputError(f"mixer must name 1 to {depth} mixers for depth {depth}, got {len(pattern)}")
        classes = {mixer_name(each): find_mixer(each) for each in pattern}
        mixer_args = mixer_args or {}
        for name, args in mixer_args.items():
            try:
                cls = classes.get(name) or find_mixer(name)
            except InputError as error:
                raise InputError(f"mixer_args: {error}") from error
            check_mixer_args(name, cls, args)
        names = (mixer_name(pattern[i % len(pattern)]) for i in range(depth))
        mixers = (
            build_mixer(classes[name], dim, expansion, layer_index=i, depth=depth, args=mixer_args.get(name, {}))
            for i, name in enumerate(names)
        )
        block = partial(Block, dim, kernel_size=kernel_size, mlp_ratio=mlp_ratio, dropout=dropout)
        blocks = (block(mixer, mlp_kernel_size=mlp_kernel_size) for mixer in mixers)
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.causal = all(block.mixer.causal for block in self.blocks)
        if chunk is not None and not self.causal:
            raise InputError("chunk must be null with a bidirectional mixer, which needs the steps of all chunks")
        self.norm = nn.LayerNorm(dim)
        self.chunk = chunk

    def forward(
        self, x: Tensor, state: State = None, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the stack over whole sequences, in parallel over the length.

        Args:
            x: (batch, length, dim).
            state: What an earlier call or ``initial_state`` returned; that of ``initial_state`` if None.
            reset: Bool (batch, length), True at the first step of a new sequence; outputs depend on nothing before.
            delta_t: (batch, length), at least 0: the time since the step before, for samples at irregular times. The
                states are forgotten as in so many steps, by mixers that are ``timed``; convolutions count steps as
                ever, ``kernel_size=0`` leaves them out.

        Returns:
            (batch, length, dim), and the state after the last step.

        Raises:
            InputError: ``delta_t`` is given, and a mixer takes none; or ``x`` is a ``PackedSequence``.
        """
        if isinstance(x, PackedSequence):
            raise InputError("x must be padded, got a PackedSequence; use pad_packed_sequence, or reset in packed rows")
        # An exported program computes all steps at once: the number of chunks would fix the length.
        if self.chunk is not None and x.shape[1] > self.chunk and not is_exporting():
            return self._in_chunks(self.chunk, x, state, reset, delta_t)
        states = [None] * len(self.blocks) if state is None else state
        after = []
        for block, before in zip(self.blocks, states, strict=True):
            x, new = block(x, before, reset, delta_t=delta_t)
            after.append(new)
        return self.norm(x), after

    def _in_chunks(
        self, chunk: int, x: Tensor, state: State, reset: Tensor | None, delta_t: Tensor | None
    ) -> tuple[Tensor, State]:
        """As ``forward``, chunk after chunk, whose activations are computed again in backward."""
        nothing = [None] * -(-x.shape[1] // chunk)
        # torch.func refuses the hooks with which checkpoint saves memory.
        again = torch.is_grad_enabled() and not is_transformed()
        resets, times = (nothing if each is None else torch.split(each, chunk, 1) for each in (reset, delta_t))
        outputs: list[Tensor] = []
        for part, starts, elapsed in zip(split_steps(x, chunk), resets, times, strict=True):
            is_last = len(outputs) + 1 == len(nothing)  # backward starts with it, and would compute it at once again
            if again and not is_last:
                y, state = checkpoint(self.forward, part, state, starts, delta_t=elapsed, use_reentrant=False)
            else:
                y, state = self.forward(part, state, starts, delta_t=elapsed)
            outputs.append(y)
            state = tree_map(Tensor.clone, state)  # a convolution's is a view of all of its input
        return torch.cat(outputs, 1), state

    def step(
        self, x_t: Tensor, state: State, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the stack over one step, at constant cost.

        Args:
            x_t: (batch, dim).
            state: What an earlier call or ``initial_state`` returned.
            reset: Bool (batch,), True where a new sequence starts, whose state is that of ``initial_state``.
            delta_t: (batch,), see ``forward``.

        Returns:
            (batch, dim), and the state.
        """
        if delta_t is None:
            result = fused_blocks(self.blocks, Block, self.norm, x_t, state, reset)
            if result is not None:
                return result
        after = []
        for block, before in zip(self.blocks, state, strict=True):
            x_t, new = block.step(x_t, before, reset, delta_t=delta_t)
            after.append(new)
        return self.norm(x_t), after

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step: that of each block."""
        return [block.initial_state(batch_size) for block in self.blocks]


def _check(**sizes: float) -> None:
    for name, size in sizes.items():
        if size <= 0:
            raise InputError(f"{name} must be above 0, got {size}")
