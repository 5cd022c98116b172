"""Formal languages in three encodings: that of the minRNN code, of the xLSTM paper and of DeepMind's benchmark."""

from minrnn_lightning.data.synthetic.languages.deepmind import DEEPMIND
from minrnn_lightning.data.synthetic.languages.language import Language
from minrnn_lightning.data.synthetic.languages.minrnn import MINRNN
from minrnn_lightning.data.synthetic.languages.xlstm import XLSTM

ENCODINGS: dict[str, dict[str, Language]] = {"minrnn": MINRNN, "xlstm": XLSTM, "deepmind": DEEPMIND}

__all__ = ["ENCODINGS", "Language"]
