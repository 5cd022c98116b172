"""The LSTM mixer."""

from minrnn_lightning.nn.mixers.torch_rnn import TorchRNNMixer


class LSTMMixer(TorchRNNMixer):
    """Layer ``nn.LSTM`` of ``expansion`` times the width, and a linear map back (Hochreiter & Schmidhuber 1997).

    Its gates depend on the hidden state, so that training runs over the sequence step by step. Source:
    https://doi.org/10.1162/neco.1997.9.8.1735.

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
    """

    def __init__(self, dim: int, expansion: float = 1.0) -> None:
        super().__init__("LSTM", dim, expansion)
