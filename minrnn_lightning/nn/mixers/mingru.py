"""The minGRU mixer."""

import math

import torch

from minrnn_lightning.nn.mixers.mixer import RecurrentMixer, hidden_size, log_timescales
from minrnn_lightning.nn.rnn import MinGRU
from minrnn_lightning.ops import Activation


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
        horizon: Steps over which a unit adds up what it reads instead of averaging it: z_t starts at 1/horizon of
            what it would be and the state is multiplied by horizon before the linear map, so that, with k less this
            part of its bias, horizon · h_t ≈ Σ exp(k) c(v) for t far below horizon. Counting needs many times as many
            steps as the longest sequence has; 1 changes nothing.
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
        horizon: float = 1.0,
    ) -> None:
        if not 1 <= horizon < math.inf:
            raise ValueError(f"horizon must be at least 1 step and finite, got {horizon}")
        hidden = hidden_size(dim, expansion)
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
            gain=horizon,
        )
        with torch.no_grad():
            for _, bias in self.rnn.all_weights:
                gate, _ = bias.chunk(2)
                gate -= log_timescales(hidden, timescale) + math.log(horizon)
