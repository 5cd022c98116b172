"""The gated minLSTM mixer."""

from minrnn_lightning.nn.functional import min_lstm, min_lstm_step
from minrnn_lightning.nn.mixers.output_gated import OutputGatedMixer


class GatedMinLSTMMixer(OutputGatedMixer):
    """A minLSTM behind a short convolution, with skip and output gate; arguments and sources: ``OutputGatedMixer``.

    h_t = f′_t · h_{t-1} + i′_t · u_t with σ of the two gates' logits divided by their sum.
    """

    function = staticmethod(min_lstm)
    step_function = staticmethod(min_lstm_step)
    time_signs = (1, -1)
