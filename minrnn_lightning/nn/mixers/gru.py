"""The GRU mixer."""

from minrnn_lightning.nn.mixers.torch_rnn import TorchRNNMixer


class GRUMixer(TorchRNNMixer):
    """Layer ``nn.GRU`` of ``expansion`` times the width, and a linear map back (Cho et al. 2014).

    Its gates depend on the hidden state, so that training runs over the sequence step by step. Source:
    https://arxiv.org/abs/1406.1078.

    Args:
        dim: Width of input and output.
        expansion: Hidden units per channel of the input.
    """

    def __init__(self, dim: int, expansion: float = 1.0) -> None:
        super().__init__("GRU", dim, expansion)
