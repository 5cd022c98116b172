"""Data modules: from files or generators to batches; they know nothing of models."""

from minrnn_lightning.data.data import Data
from minrnn_lightning.data.shakespeare import ShakespeareDataModule
from minrnn_lightning.data.text import TextDataModule

__all__ = ["Data", "ShakespeareDataModule", "TextDataModule"]
