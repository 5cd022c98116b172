"""``Mixer``, the contract of every sequence mixer, and ``RecurrentMixer``, one built on a recurrent layer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.rnn_base import MinRNN

is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", bool)  # since torch 2.7; before, never

State = Any  # a tree (tuples, lists) of tensors whose first dimension is the batch


class Mixer(nn.Module, ABC):
    """Maps (batch, length, dim) to the same shape, causally, in parallel over the length or step by step.

    A mixer that can forget by the time that has passed says so by ``timed``; its ``forward`` and ``step`` then have the
    keyword ``delta_t``. One for encoders, which reads in both directions, says that it is not ``causal``.
    """

    timed = False
    causal = True

    @abstractmethod
    def forward(self, x: Tensor, state: State = None, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """Mix along the length.

        Args:
            x: (batch, length, dim).
            state: What an earlier call or ``initial_state`` returned; that of ``initial_state`` if None.
            reset: Bool (batch, length), True at the first step of a new sequence: nothing before it is seen.

        Returns:
            (batch, length, dim), and the state after the last step.
        """

    @abstractmethod
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of ``forward``, with gradient: (batch, dim) and a state to the same."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""


class RecurrentMixer(Mixer):
    """A recurrent layer, usually wider than the stack, then a linear map back to its width.

    The state is the hidden state, (batch, hidden_size). ``delta_t`` is that of the layer; see ``MinRNN.forward``.

    Args:
        rnn: One layer, batch first; in both directions for an encoder, which has no state.
        gain: What each unit's output is multiplied by before the linear map, (hidden_size,); one if None.
    """

    timed = True

    def __init__(self, rnn: MinRNN, gain: Tensor | None = None) -> None:
        super().__init__()
        self.rnn = rnn
        self.gain: Tensor | None
        self.register_buffer("gain", gain if gain is None else gain.repeat(1 + rnn.bidirectional), persistent=False)
        self.causal = not rnn.bidirectional
        self.out = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), rnn.input_size)

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        if self.rnn.bidirectional:
            self._refuse(state is not None)
            return self._map(self.rnn(x, reset=reset, delta_t=delta_t)[0]), None
        h, state = self.rnn(x, None if state is None else state.unsqueeze(0), reset=reset, delta_t=delta_t)
        return self._map(h), state.squeeze(0)

    def step(self, x_t: Tensor, state: Tensor, *, delta_t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of ``forward``: (batch, dim) and the state to the same."""
        h, state = self.rnn.step(x_t, state.unsqueeze(0), delta_t=delta_t)
        return self._map(h), state.squeeze(0)

    def initial_state(self, batch_size: int) -> Tensor:
        """That of the layer, (batch, hidden_size)."""
        self._refuse(self.rnn.bidirectional)
        return self.rnn.initial_state(batch_size).squeeze(0)

    def _map(self, h: Tensor) -> Tensor:
        if self.gain is not None:
            if h.dtype == torch.float16:
                raise InputError("float16 cannot hold the small states of counters; use bfloat16 or float32")
            h = self.gain * h
        mapped: Tensor = self.out(h)
        return mapped

    def _refuse(self, asked: bool) -> None:
        if asked:
            raise InputError("a bidirectional mixer needs the whole sequence: it has no state and no step")


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


def log_timescales(size: int, longest: float) -> Tensor:
    """Logarithms of ``size`` time constants spread evenly from 1 step to ``longest``.

    A unit whose forget gate starts at bias log τ remembers for about τ steps: chrono initialisation (Tallec & Ollivier
    2018, https://arxiv.org/abs/1804.11188), with the time constants spread over the octaves.

    Raises:
        InputError: ``longest`` is below 1 or not finite.
    """
    if not 1 <= longest < math.inf:
        raise InputError(f"timescale must be at least 1 step and finite, got {longest}")
    return torch.linspace(0, math.log(longest), size)
