"""The gated minGRU mixer."""

from minrnn_lightning.nn.functional import min_gru, min_gru_step
from minrnn_lightning.nn.mixers.output_gated import OutputGatedMixer


class GatedMinGRUMixer(OutputGatedMixer):
    """A minGRU behind a short convolution, with skip and output gate; arguments and sources: ``OutputGatedMixer``.

    h_t = h_{t-1} + σ(k_t) · (u_t − h_{t-1}).
    """

    function = staticmethod(min_gru)
    step_function = staticmethod(min_gru_step)
    time_signs = (-1,)
