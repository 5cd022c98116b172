"""Lightning callbacks: text samples, plots, returns in environments, costs, divergence, interruptions."""

from minrnn_lightning.callbacks.accuracy_by_length import AccuracyByLengthPlot, LengthPicture
from minrnn_lightning.callbacks.batch_seeds import SeedEveryBatch
from minrnn_lightning.callbacks.divergence import StopOnDivergence
from minrnn_lightning.callbacks.environment_return import EnvironmentReturn
from minrnn_lightning.callbacks.interruptible_checkpoint import AtTrainEnd, InterruptibleCheckpoint
from minrnn_lightning.callbacks.text_samples import TextSamples
from minrnn_lightning.callbacks.training_cost import StepCost, TrainingCost

__all__ = [
    "AccuracyByLengthPlot",
    "AtTrainEnd",
    "EnvironmentReturn",
    "InterruptibleCheckpoint",
    "LengthPicture",
    "SeedEveryBatch",
    "StepCost",
    "StopOnDivergence",
    "TextSamples",
    "TrainingCost",
]
