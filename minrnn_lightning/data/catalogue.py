"""All public names of ``minrnn_lightning.data``."""

from minrnn_lightning.batches import TrajectoryBatch
from minrnn_lightning.data.long_range_arena.images import SequentialImageDataModule
from minrnn_lightning.data.long_range_arena.imdb import IMDBDataModule
from minrnn_lightning.data.long_range_arena.listops import ListOpsDataModule
from minrnn_lightning.data.long_range_arena.pathfinder import PathfinderDataModule
from minrnn_lightning.data.long_range_arena.retrieval import RetrievalDataModule
from minrnn_lightning.data.module import BaseDataModule
from minrnn_lightning.data.offline_rl.module import TrajectoryDataModule
from minrnn_lightning.data.synthetic.formal_languages import FormalLanguageDataModule
from minrnn_lightning.data.synthetic.mqar import MQARDataModule
from minrnn_lightning.data.synthetic.recall import AssociativeRecallDataModule, InductionHeadsDataModule
from minrnn_lightning.data.synthetic.selective_copying import SelectiveCopyingDataModule
from minrnn_lightning.data.synthetic.word_problems import WordProblemDataModule
from minrnn_lightning.data.text.corpora import CorpusDataModule
from minrnn_lightning.data.text.module import TextDataModule
from minrnn_lightning.data.text.shakespeare import ShakespeareDataModule
from minrnn_lightning.data.text.streaming import StreamingTextDataModule

__all__ = [
    "AssociativeRecallDataModule",
    "BaseDataModule",
    "CorpusDataModule",
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
    "StreamingTextDataModule",
    "TextDataModule",
    "TrajectoryBatch",
    "TrajectoryDataModule",
    "WordProblemDataModule",
]
