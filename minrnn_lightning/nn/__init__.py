"""``MinGRU`` and ``MinLSTM`` with the interface of ``torch.nn.GRU``, and the backbone that stacks mixers; states."""

from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.mixers import MIXERS
from minrnn_lightning.nn.rnn import MinGRU, MinLSTM
from minrnn_lightning.nn.state import select_state, where
from minrnn_lightning.nn.step_plan import unchanged_modules

__all__ = ["MIXERS", "Backbone", "MinGRU", "MinLSTM", "select_state", "unchanged_modules", "where"]
