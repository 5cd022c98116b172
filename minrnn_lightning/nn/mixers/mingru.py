"""The minGRU mixer."""

import math
from functools import partial

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.functional import min_gru, min_gru_step
from minrnn_lightning.nn.mixers.base import hidden_size
from minrnn_lightning.nn.mixers.counters import HORIZON, CounterLinear
from minrnn_lightning.nn.mixers.gated import GatedMixer
from minrnn_lightning.nn.timescale import log_timescales
from minrnn_lightning.ops import Activation


class MinGRUMixer(GatedMixer):
    """Recurrence of minGRU with ``expansion`` times the width, and a linear map back (section 3.1 of the paper).

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
        activation: Of the candidate: ``positive`` (the paper's g) or ``identity``.
        signed: Let the state's factor be negative too, as parity needs; see ``MinGRU``.
        learn_initial_state: Learn the state before the first step; see ``MinGRU``.
        bidirectional: Read in both directions, for encoders; there is no state and no step then.
        timescale: The longest time constant, in steps, of the gates' initialisation; 1 leaves their biases unchanged.
        counters: Fraction of the units, from 0 to 1, that initially sum their inputs instead of averaging them; see
            ``counters.py``. Counting down as well needs ``identity``.
        highway: Let a gate p choose between the state and the input, y = σ(p) · h + (1 − σ(p)) · x with p linear in x,
            instead of the linear map back, as in PufferLib's MinGRU. It has as many parameters.

    Raises:
        InputError: An argument is out of range, or ``highway`` is combined with another ``expansion`` than 1,
            ``counters`` or ``bidirectional``.
    """

    function = staticmethod(min_gru)
    step_function = staticmethod(min_gru_step)
    blocks = 2

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        activation: Activation = "positive",
        signed: bool = False,
        learn_initial_state: bool = False,
        bidirectional: bool = False,
        timescale: float = 64.0,
        counters: float = 0.0,
        highway: bool = False,
    ) -> None:
        if not 0 <= counters <= 1:
            raise InputError(f"counters must be a fraction of the units from 0 to 1, got {counters}")
        hidden = hidden_size(dim, expansion)
        if highway and (hidden != dim or counters or bidirectional):
            raise InputError(
                "highway needs expansion 1, no counters and bidirectional false, "
                f"got expansion {expansion}, counters {counters}, bidirectional {str(bidirectional).lower()}"
            )
        counting = round(counters * hidden)
        averaging = hidden - counting
        super().__init__(
            dim,
            hidden,
            bidirectional=bidirectional,
            learn_initial_state=learn_initial_state,
            activation=activation,
            options={"signed": signed},
            **({"output": partial(CounterLinear, hidden=hidden, counting=counting)} if counting else {}),
        )
        with torch.no_grad():
            for gate, _ in self.rnn.biases():
                gate[:averaging] -= log_timescales(averaging, timescale)
                gate[averaging:] -= math.log(HORIZON)
        self.highway = highway

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """A linear map of the state (..., hidden), or with ``highway`` a mean of it and the input (..., dim)."""
        return x + torch.sigmoid(self.out(x)) * (h - x) if self.highway else super().output(h, x)
