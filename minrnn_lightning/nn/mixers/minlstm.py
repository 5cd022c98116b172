"""The minLSTM mixer."""

import torch

from minrnn_lightning.nn.functional import min_lstm, min_lstm_step
from minrnn_lightning.nn.mixers.base import hidden_size
from minrnn_lightning.nn.mixers.gated import GatedMixer
from minrnn_lightning.nn.timescale import log_timescales
from minrnn_lightning.ops import Activation


class MinLSTMMixer(GatedMixer):
    """Recurrence of minLSTM with ``expansion`` times the width, and a linear map back (section 3.2 of the paper).

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
        activation: Of the candidate: ``positive`` (the paper's g) or ``identity``.
        signed: Let the state's factor be negative too, as parity needs; see ``MinLSTM``.
        learn_initial_state: Learn the state before the first step; see ``MinLSTM``.
        bidirectional: Read in both directions, for encoders; there is no state and no step then.
        normalize: Divide the two gates by their sum, as the paper's first two versions do. The third has it as a
            variant, and the published code does not do it.
        forget_bias: Added to the bias of every forget gate at the start, in addition to ``timescale``.
        timescale: The longest time constant, in steps, of the gates' initialisation; 1 leaves their biases unchanged.
    """

    function = staticmethod(min_lstm)
    step_function = staticmethod(min_lstm_step)
    blocks = 3

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
            dim,
            hidden,
            bidirectional=bidirectional,
            learn_initial_state=learn_initial_state,
            activation=activation,
            options={"signed": signed, "normalize": normalize},
        )
        with torch.no_grad():
            for forget, input_, _ in self.rnn.biases():
                forget += forget_bias
                forget += log_timescales(hidden, timescale)
                input_ -= log_timescales(hidden, timescale)
