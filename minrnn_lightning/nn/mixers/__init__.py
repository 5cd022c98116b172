"""Sequence mixers, one file each; all keep the contract of ``Mixer``, and ``MIXERS`` lists them."""

from minrnn_lightning.nn.mixers.attention import AttentionMixer
from minrnn_lightning.nn.mixers.base import Mixer
from minrnn_lightning.nn.mixers.deltanet import DeltaNetMixer
from minrnn_lightning.nn.mixers.gated_mingru import GatedMinGRUMixer
from minrnn_lightning.nn.mixers.gru import GRUMixer
from minrnn_lightning.nn.mixers.lstm import LSTMMixer
from minrnn_lightning.nn.mixers.mamba import MambaMixer
from minrnn_lightning.nn.mixers.matrix_mingru import MatrixMinGRUMixer
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.mixers.pointwise import PointwiseMixer
from minrnn_lightning.nn.mixers.registry import MIXERS, find_mixer, mixer_name
from minrnn_lightning.nn.mixers.s4d import S4DMixer

__all__ = [
    "MIXERS",
    "AttentionMixer",
    "DeltaNetMixer",
    "GRUMixer",
    "GatedMinGRUMixer",
    "LSTMMixer",
    "MambaMixer",
    "MatrixMinGRUMixer",
    "MinGRUMixer",
    "MinLSTMMixer",
    "Mixer",
    "PointwiseMixer",
    "S4DMixer",
    "find_mixer",
    "mixer_name",
]
