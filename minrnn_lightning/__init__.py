"""minGRU and minLSTM for PyTorch Lightning.

A public name is looked up when it is first used, so that ``import minrnn_lightning.nn`` needs no Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minrnn_lightning.callbacks import AccuracyByLengthPlot, TextSamples
    from minrnn_lightning.data import (
        AssociativeRecallDataModule,
        BaseDataModule,
        CorpusDataModule,
        FormalLanguageDataModule,
        IMDBDataModule,
        InductionHeadsDataModule,
        ListOpsDataModule,
        MQARDataModule,
        PathfinderDataModule,
        RetrievalDataModule,
        SelectiveCopyingDataModule,
        SequentialImageDataModule,
        ShakespeareDataModule,
        StreamingTextDataModule,
        TextDataModule,
        TrajectoryBatch,
        TrajectoryDataModule,
        WordProblemDataModule,
    )
    from minrnn_lightning.nn import Backbone, MinGRU, MinLSTM
    from minrnn_lightning.rl.rollout_data import RolloutDataModule
    from minrnn_lightning.tasks import (
        ClassificationTask,
        LanguageTask,
        PolicyTask,
        PPOTask,
        SequenceTask,
        TaggingTask,
        Task,
    )

__all__ = [
    "AccuracyByLengthPlot",
    "AssociativeRecallDataModule",
    "Backbone",
    "BaseDataModule",
    "ClassificationTask",
    "CorpusDataModule",
    "FormalLanguageDataModule",
    "IMDBDataModule",
    "InductionHeadsDataModule",
    "LanguageTask",
    "ListOpsDataModule",
    "MQARDataModule",
    "MinGRU",
    "MinLSTM",
    "PPOTask",
    "PathfinderDataModule",
    "PolicyTask",
    "RetrievalDataModule",
    "RolloutDataModule",
    "SelectiveCopyingDataModule",
    "SequenceTask",
    "SequentialImageDataModule",
    "ShakespeareDataModule",
    "StreamingTextDataModule",
    "TaggingTask",
    "Task",
    "TextDataModule",
    "TextSamples",
    "TrajectoryBatch",
    "TrajectoryDataModule",
    "WordProblemDataModule",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ("nn", "tasks", "data", "rl.rollout_data", "callbacks"):
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
