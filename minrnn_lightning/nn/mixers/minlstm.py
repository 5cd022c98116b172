"""The minLSTM mixer."""

import torch

from minrnn_lightning.nn.mixers.base import RecurrentMixer, hidden_size, log_timescales
from minrnn_lightning.nn.rnn import MinLSTM
from minrnn_lightning.ops import Activation


class MinLSTMMixer(RecurrentMixer):
    """minLSTM of ``expansion`` times the width, and a linear map back (section 3.2 of the paper).

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
        activation: Of the candidate: ``positive`` (the paper's g) or ``identity``.
        signed: Let the state's factor be negative too, as parity needs; see ``MinLSTM``.
        learn_initial_state: Learn the state before the first step; see ``MinLSTM``.
        bidirectional: Read in both directions, for encoders; there is no state and no step then.
        normalize: Divide the two gates by their sum, as the paper's text does; its published code does not.
        forget_bias: Added to the bias of every forget gate at the start, after ``timescale``.
        timescale: The longest time constant, in steps, of the gates' initialisation; 1 leaves their biases alone.
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
        normalize: bool = True,
        forget_bias: float = 0.0,
        timescale: float = 64.0,
    ) -> None:
        hidden = hidden_size(dim, expansion)
        super().__init__(
            MinLSTM(
                dim,
                hidden,
                batch_first=True,
                bidirectional=bidirectional,
                activation=activation,
                signed=signed,
                learn_initial_state=learn_initial_state,
                normalize=normalize,
                forget_bias=forget_bias,
            )
        )
        with torch.no_grad():
            for _, bias in self.rnn.all_weights:
                forget, input_, _ = bias.chunk(3)
                forget += log_timescales(hidden, timescale)
                input_ -= log_timescales(hidden, timescale)
