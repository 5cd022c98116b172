"""The minLSTM mixer."""

import torch

from minrnn_lightning.nn.mixers.mixer import RecurrentMixer, hidden_size, log_timescales
from minrnn_lightning.nn.rnn import MinLSTM
from minrnn_lightning.ops import Activation


class MinLSTMMixer(RecurrentMixer):
    """minLSTM of ``expansion`` times the width, and a linear map back (section 3.2 of the paper).

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
        activation: Of the candidate: ``positive`` (the paper's g) or ``identity``.
        normalize: Divide the two gates by their sum, as the paper's text does; its published code does not.
        timescale: The longest time constant, in steps, of the gates' initialisation; 1 leaves their biases alone.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 1.0,
        *,
        activation: Activation = "positive",
        normalize: bool = True,
        timescale: float = 64.0,
    ) -> None:
        hidden = hidden_size(dim, expansion)
        super().__init__(MinLSTM(dim, hidden, batch_first=True, activation=activation, normalize=normalize))
        with torch.no_grad():
            forget, input_, _ = self.rnn.bias_ih_l0.chunk(3)
            forget += log_timescales(hidden, timescale)
            input_ -= log_timescales(hidden, timescale)
