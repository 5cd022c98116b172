"""The minGRU mixer."""

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
        timescale: The longest time constant, in steps, of the gates' initialisation; 1 leaves their biases alone.
    """

    def __init__(
        self, dim: int, expansion: float = 1.0, *, activation: Activation = "positive", timescale: float = 64.0
    ) -> None:
        super().__init__(MinGRU(dim, hidden_size(dim, expansion), batch_first=True, activation=activation))
        with torch.no_grad():
            gate, _ = self.rnn.bias_ih_l0.chunk(2)
            gate -= log_timescales(self.rnn.hidden_size, timescale)
