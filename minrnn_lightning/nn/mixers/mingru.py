"""The minGRU mixer."""

import math
from functools import partial

import torch

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
    ) -> None:
        if not 0 <= counters <= 1:
            raise InputError(f"counters must be a fraction of the units from 0 to 1, got {counters}")
        hidden = hidden_size(dim, expansion)
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
