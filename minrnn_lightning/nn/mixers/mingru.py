"""The minGRU mixer."""

import math

import torch

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.mixers.base import RecurrentMixer, hidden_size, log_timescales
from minrnn_lightning.nn.rnn import MinGRU
from minrnn_lightning.ops import Activation

HORIZON = 1e6  # steps, far above any sequence's; float32 still tells 1 - 1/HORIZON from 1


class MinGRUMixer(RecurrentMixer):
    """minGRU of ``expansion`` times the width, and a linear map back (section 3.1 of the paper).

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
        activation: Of the candidate: ``positive`` (the paper's g) or ``identity``.
        signed: Let the state's factor be negative too, as parity needs; see ``MinGRU``.
        learn_initial_state: Learn the state before the first step; see ``MinGRU``.
        bidirectional: Read in both directions, for encoders; there is no state and no step then.
        timescale: The longest time constant, in steps, of the gates' initialisation; 1 leaves their biases alone.
        counters: Share of the units, from 0 to 1, that start out adding up what they read instead of averaging it:
            their z starts a million times smaller and their state counts a million times more in the linear map, so
            that it stands for Σ exp(k) c(v), k less that part of its bias. Others can tell how much of something there
            was, these how many; they go with ``identity`` where a count has to go down too.
    """

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
            raise InputError(f"counters must be a share of the units from 0 to 1, got {counters}")
        hidden = hidden_size(dim, expansion)
        counting = round(counters * hidden)
        averaging = hidden - counting
        gain = torch.cat([torch.ones(averaging), torch.full((counting,), HORIZON)]) if counting else None
        super().__init__(
            MinGRU(
                dim,
                hidden,
                batch_first=True,
                bidirectional=bidirectional,
                activation=activation,
                signed=signed,
                learn_initial_state=learn_initial_state,
            ),
            gain,
        )
        with torch.no_grad():
            for _, bias in self.rnn.all_weights:
                gate, _ = bias.chunk(2)
                gate[:averaging] -= log_timescales(averaging, timescale)
                gate[averaging:] -= math.log(HORIZON)
