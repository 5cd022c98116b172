"""Data modules: from files or generators to batches; they know nothing of models."""

from minrnn_lightning.data.data import Data
from minrnn_lightning.data.formal_languages import FormalLanguageDataModule
from minrnn_lightning.data.recall import AssociativeRecallDataModule, InductionHeadsDataModule, MQARDataModule
from minrnn_lightning.data.selective_copying import SelectiveCopyingDataModule
from minrnn_lightning.data.shakespeare import ShakespeareDataModule
from minrnn_lightning.data.text import TextDataModule

__all__ = [
    "AssociativeRecallDataModule",
    "Data",
    "FormalLanguageDataModule",
    "InductionHeadsDataModule",
    "MQARDataModule",
    "SelectiveCopyingDataModule",
    "ShakespeareDataModule",
    "TextDataModule",
]
