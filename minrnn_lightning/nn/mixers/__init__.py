"""Sequence mixers: one file per kind, all with the contract of ``Mixer``; a new one is listed in ``MIXERS``."""

from collections.abc import Callable

from minrnn_lightning.nn.mixers.mingru import MinGRUMixer
from minrnn_lightning.nn.mixers.minlstm import MinLSTMMixer
from minrnn_lightning.nn.mixers.mixer import Mixer, RecurrentMixer

MIXERS: dict[str, Callable[[int, float], Mixer]] = {
    "mingru": MinGRUMixer,
    "minlstm": MinLSTMMixer,
}

__all__ = ["MIXERS", "MinGRUMixer", "MinLSTMMixer", "Mixer", "RecurrentMixer"]
