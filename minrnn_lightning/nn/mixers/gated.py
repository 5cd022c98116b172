"""What the minGRU and minLSTM mixers share: the linear maps around the recurrence, and its state."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.functional import activate
from minrnn_lightning.nn.fused import apply_linear
from minrnn_lightning.nn.linear_views import LinearViews, project
from minrnn_lightning.nn.marks import mark_maps
from minrnn_lightning.nn.mixers.base import Mixer
from minrnn_lightning.nn.state import State, zero_state
from minrnn_lightning.ops import Activation, state_dtype


class Logits(LinearViews):
    """The linear map from the input to the logits of gates and candidate, and the learned initial state.

    Parameters have the names, shapes and initial values of those of ``MinGRU`` and ``MinLSTM``, so that the weights of
    one load into the other.

    Args:
        dim: Features of the input.
        hidden: Units of the state.
        blocks: Number of logits for each unit.
        bidirectional: Whether there is a second map, for the backward direction.
        learn_initial_state: Whether there is an initial state to learn, for each direction.
    """

    initial: nn.Parameter | None

    def __init__(self, dim: int, hidden: int, blocks: int, *, bidirectional: bool, learn_initial_state: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.directions = ("", "_reverse") if bidirectional else ("",)
        bound = 1 / math.sqrt(dim)
        for direction in self.directions:
            weight, bias = torch.empty(blocks * hidden, dim), torch.empty(blocks * hidden)
            for name, values in (("weight", weight), ("bias", bias)):
                parameter = nn.Parameter(nn.init.uniform_(values, -bound, bound))
                mark_maps(parameter, blocks)
                self.register_parameter(f"{name}_ih_l0{direction}", parameter)
        initial = nn.Parameter(torch.randn(len(self.directions), hidden)) if learn_initial_state else None
        self.register_parameter("initial", initial)

    def forward(self, x: Tensor, direction: str = "") -> list[Tensor]:
        """(..., dim) to the logits of each block, (..., hidden)."""
        weight, bias = (getattr(self, f"{name}_ih_l0{direction}") for name in ("weight", "bias"))
        return project(x, self.blocks, weight, bias)

    def biases(self) -> list[tuple[Tensor, ...]]:
        """The bias of each block, for each direction."""
        return [getattr(self, f"bias_ih_l0{direction}").chunk(self.blocks) for direction in self.directions]


class GatedMixer(Mixer):
    """A linear map to logits, a recurrence that is a function of them, and a linear map back to the width.

    The state is the hidden state, (batch, hidden), in float32 (float64 for float64 inputs). ``delta_t`` is that of
    ``min_gru``.

    Args:
        dim: Width of input and output.
        hidden: Units of the state.
        bidirectional: Whether to read in both directions, for encoders, which have no state and no step.
        learn_initial_state: Whether the state before the first step is learned.
        activation: That of the candidate.
        options: Further arguments of the function.
        output: Builds the linear map back to the width, from its numbers of input and output features.
    """

    function: ClassVar[Callable[..., Any]]  # min_gru or min_lstm
    step_function: ClassVar[Callable[..., Tensor]]
    blocks: ClassVar[int]  # number of logits for each unit
    timed = True

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        bidirectional: bool,
        learn_initial_state: bool,
        activation: Activation,
        options: dict[str, Any],
        output: Callable[[int, int], nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        if activation not in ("positive", "identity"):
            raise InputError(f"activation is {activation!r}; it can be 'positive' or 'identity'")
        self.dim, self.hidden, self.activation, self.bidirectional = dim, hidden, activation, bidirectional
        self.options = {"activation": activation, **options}
        self.causal = self.shardable = not bidirectional
        self.rnn = Logits(
            dim, hidden, self.blocks, bidirectional=bidirectional, learn_initial_state=learn_initial_state
        )
        self.out = output(hidden * (1 + bidirectional), dim)

    def mix(
        self, x: Tensor, state: Tensor | None, reset: Tensor | None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mix (batch, length, dim) along the length; see ``Mixer``."""
        if self.bidirectional:
            self._refuse(state is not None)
        outputs = []
        for direction, start in zip(self.rnn.directions, self._starts(), strict=True):
            logits, reverse = self.rnn(x, direction), direction != ""
            options = {"reset": reset, "reverse": reverse, "delta_t": delta_t, "initial_state": start, **self.options}
            options["group"] = self.group
            outputs.append(self.function(*logits, state, return_state=not self.bidirectional, **options))
        if self.bidirectional:
            return self.output(torch.cat(outputs, -1), x), ()
        ((h, state),) = outputs
        return self.output(h, x), state

    def mix_step(self, x_t: Tensor, state: Tensor, *, delta_t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of ``forward``: from (batch, dim) and the state to the same."""
        self._refuse(self.bidirectional)
        logits = self.rnn(x_t)
        state = self.step_function(*logits, state, delta_t=delta_t, **self.options)
        return self.output(state.to(logits[0].dtype), x_t), state

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """From the hidden state (..., hidden) at inputs (..., dim) to the output (..., dim): a linear map of h."""
        return apply_linear(self.out, h)

    def initial_state(self, batch_size: int) -> Tensor:
        """The learned state, or else zeros, (batch, hidden)."""
        self._refuse(self.bidirectional)
        (start,) = self._starts()
        if start is None:
            return zero_state(self.out.weight, batch_size, self.hidden)
        return start.to(state_dtype(self.out.weight.dtype)).repeat(batch_size, 1)

    def _starts(self) -> list[Tensor | None]:
        """The learned initial state of each direction, (hidden,), or None."""
        if self.rnn.initial is None:
            return [None] * len(self.rnn.directions)
        return list(activate(self.rnn.initial, self.activation))

    def _refuse(self, stateful: bool) -> None:
        if stateful:
            raise InputError("a bidirectional mixer needs the whole sequence: it has no state and no step")
