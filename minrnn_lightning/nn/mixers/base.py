"""``Mixer``, the contract of every sequence mixer."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.marks import Marked
from minrnn_lightning.nn.sequence_parallel import Shardable
from minrnn_lightning.nn.state import State, where


def is_exporting() -> bool:
    """Whether ``torch.export`` traces this call; never before torch 2.7."""
    # torch.compiler.is_exporting() returns this flag, but until torch 2.12 it is True under torch.compile too.
    return getattr(torch.compiler, "_is_exporting_flag", False)


class Mixer(Marked, Shardable, ABC):
    """Maps (batch, length, dim) to the same shape, causally, in parallel over the length or step by step.

    A subclass defines ``mix``, ``mix_step`` and ``initial_state``. Its constructor takes ``dim`` and, where it has
    them, ``expansion``, the hidden units per channel, and ``layer_index`` and ``depth``, the position in the stack and
    the number of its blocks; all other arguments come from ``mixer_args``.

    Attributes:
        dim: The width, which a subclass sets so that it can be exported by itself, without a backbone around it.
        timed: Whether the decay depends on the elapsed time: ``mix`` and ``mix_step`` then have the keyword
            ``delta_t``.
        causal: Whether no output depends on a later input; an encoder that reads in both directions is not causal.
        has_convolution: Whether the mixer contains a short convolution, so that the block around it adds none.
        shardable: Whether ``mix`` takes a part of a sequence whose other parts are on the processes of ``self.group``;
            see ``sequence_parallel``.
    """

    dim: int
    timed = False
    causal = True
    has_convolution = False
    shardable = False

    def forward(self, x: Tensor, state: State = None, reset: Tensor | None = None, **time: Any) -> tuple[Tensor, State]:
        """Mix along the length.

        Args:
            x: (batch, length, dim).
            state: What an earlier call or ``initial_state`` returned; that of ``initial_state`` if None.
            reset: Bool (batch, length), True at the first step of a new sequence: the output depends on nothing before.
            **time: ``delta_t``, (batch, length), for mixers that are ``timed``: the time since the step before.

        Returns:
            (batch, length, dim), and the state after the last step.
        """
        if x.numel() == 0 and self.group is None:
            if state is None:
                state = self.initial_state(x.shape[0]) if self.causal else ()
            return x, state
        return self.mix(x, state, reset, **time)

    @abstractmethod
    def mix(self, x: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``forward`` for a batch and a length of at least 1."""

    def step(self, x_t: Tensor, state: State, reset: Tensor | None = None, **time: Any) -> tuple[Tensor, State]:
        """One step of ``forward``, with gradients.

        Args:
            x_t: (batch, dim).
            state: What an earlier call or ``initial_state`` returned.
            reset: Bool (batch,), True where a new sequence starts, whose state is that of ``initial_state``.
            **time: ``delta_t``, (batch,), for mixers that are ``timed``.

        Returns:
            (batch, dim), and the state.
        """
        if reset is not None:
            state = where(reset, self.initial_state(x_t.shape[0]), state)
        return self.mix_step(x_t, state, **time)

    def mix_step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """``step`` without resets; a subclass defines it, or else ``step`` itself."""
        raise NotImplementedError(f"{type(self).__name__} defines neither mix_step nor step")

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first step: a tree of tensors, the batch first, float32 (float64 of float64 weights)."""


def hidden_size(dim: int, expansion: float) -> int:
    """Hidden units of a mixer of ``expansion`` times the width ``dim``.

    Raises:
        InputError: There would be none.
    """
    size = round(dim * expansion)
    if size < 1:
        raise InputError(
            f"expansion {expansion} of dim {dim} leaves no hidden unit; give an expansion of at least 1/dim"
        )
    return size
