"""LightningModules: a loss, metrics and an optimizer around a backbone. Subclass them."""

from minrnn_lightning.tasks.classification import ClassificationTask
from minrnn_lightning.tasks.language import LanguageTask
from minrnn_lightning.tasks.policy import PolicyTask
from minrnn_lightning.tasks.ppo import PPOTask
from minrnn_lightning.tasks.sequence import SequenceTask
from minrnn_lightning.tasks.tagging import TaggingTask
from minrnn_lightning.tasks.task import Task

__all__ = ["ClassificationTask", "LanguageTask", "PPOTask", "PolicyTask", "SequenceTask", "TaggingTask", "Task"]
