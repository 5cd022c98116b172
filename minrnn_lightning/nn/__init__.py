"""``MinGRU`` and ``MinLSTM`` with the interface of ``torch.nn.GRU``, and the backbone that stacks such mixers."""

from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.mixers import MIXERS
from minrnn_lightning.nn.rnn import MinGRU, MinLSTM

__all__ = ["MIXERS", "Backbone", "MinGRU", "MinLSTM"]
