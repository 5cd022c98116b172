"""Data modules: from files or generators to batches; they know nothing of models."""

from minrnn_lightning.data.data import Data
from minrnn_lightning.data.formal_languages import FormalLanguageDataModule
from minrnn_lightning.data.images import SequentialImageDataModule
from minrnn_lightning.data.imdb import IMDBDataModule
from minrnn_lightning.data.listops import ListOpsDataModule
from minrnn_lightning.data.mqar import MQARDataModule
from minrnn_lightning.data.pathfinder import PathfinderDataModule
from minrnn_lightning.data.recall import AssociativeRecallDataModule, InductionHeadsDataModule
from minrnn_lightning.data.retrieval import RetrievalDataModule
from minrnn_lightning.data.selective_copying import SelectiveCopyingDataModule
from minrnn_lightning.data.shakespeare import ShakespeareDataModule
from minrnn_lightning.data.text import TextDataModule
from minrnn_lightning.data.trajectories import TrajectoryDataModule
from minrnn_lightning.data.trajectory_rows import Trajectories

__all__ = [
    "AssociativeRecallDataModule",
    "Data",
    "FormalLanguageDataModule",
    "IMDBDataModule",
    "InductionHeadsDataModule",
    "ListOpsDataModule",
    "MQARDataModule",
    "PathfinderDataModule",
    "RetrievalDataModule",
    "SelectiveCopyingDataModule",
    "SequentialImageDataModule",
    "ShakespeareDataModule",
    "TextDataModule",
    "Trajectories",
    "TrajectoryDataModule",
]
