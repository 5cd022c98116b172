"""Sequence mixers: one file per kind, all with the contract of ``Mixer``; a new one is listed in ``MIXERS``."""

from collections.abc import Callable

from minrnn_lightning.nn.mixers.attention import AttentionMixer
from minrnn_lightning.nn.mixers.base import Mixer, RecurrentMixer
from minrnn_lightning.nn.mixers.gru import GRUMixer
from minrnn_lightning.nn.mixers.lstm import LSTMMixer
from minrnn_lightning.nn.mixers.mamba import MambaMixer
from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.mixers.s4d import S4DMixer

MIXERS: dict[str, Callable[..., Mixer]] = {
    "attention": AttentionMixer,
    "gru": GRUMixer,
    "lstm": LSTMMixer,
    "mamba": MambaMixer,
    "mingru": MinGRUMixer,
    "minlstm": MinLSTMMixer,
    "s4d": S4DMixer,
}

__all__ = [
    "MIXERS",
    "AttentionMixer",
    "GRUMixer",
    "LSTMMixer",
    "MambaMixer",
    "MinGRUMixer",
    "MinLSTMMixer",
    "Mixer",
    "RecurrentMixer",
    "S4DMixer",
]
