"""Formal languages in three encodings: that of the minRNN code, of the xLSTM paper and of DeepMind's benchmark."""

from minrnn_lightning.data.languages.deepmind import DEEPMIND
from minrnn_lightning.data.languages.language import Language
from minrnn_lightning.data.languages.minrnn import MINRNN
from minrnn_lightning.data.languages.xlstm import XLSTM

ENCODINGS: dict[str, dict[str, Language]] = {"minrnn": MINRNN, "xlstm": XLSTM, "deepmind": DEEPMIND}

__all__ = ["ENCODINGS", "Language"]
