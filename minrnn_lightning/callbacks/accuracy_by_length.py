"""A plot of accuracy against sequence length for the loggers."""

from __future__ import annotations

from importlib.util import find_spec

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from minrnn_lightning.batches import data_facts
from minrnn_lightning.callbacks.media import TAKES_MEDIA, log_figure


class AccuracyByLengthPlot(Callback):
    """Plots accuracy, baseline and chance against length after each validation and test.

    For tasks that have ``accuracy_by_length``, such as TaggingTask, and the loggers TensorBoard, Weights & Biases and
    MLflow; without matplotlib there is no plot.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print a line if matplotlib is missing."""
        if find_spec("matplotlib") is None:
            rank_zero_info('No plot without matplotlib: pip install "minrnn-lightning[benchmark]"')

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the validation."""
        if not trainer.sanity_checking:
            self._plot(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plot the test."""
        self._plot(trainer, pl_module, "test")

    def _plot(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TAKES_MEDIA)]
        accuracies: dict[int, float] = getattr(pl_module, "accuracy_by_length", {})
        if len(accuracies) < 2 or not trainer.is_global_zero or not loggers or find_spec("matplotlib") is None:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*accuracies.items(), strict=True), marker=".", label="accuracy")
        facts = data_facts(trainer)
        for name, level, style in (("baseline", facts.baseline, "--"), ("chance", facts.chance, ":")):
            if level is not None:
                axes.axhline(level, color="gray", linestyle=style, label=name)
        if max(accuracies) > 16 * min(accuracies):
            axes.set_xscale("log", base=2)
        axes.set(xlabel="length", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend()
        for logger in loggers:
            log_figure(logger, f"{split}/accuracy by length", figure, trainer.global_step)


class LengthPicture(AccuracyByLengthPlot):
    """The former name of ``AccuracyByLengthPlot``, for existing recipes."""
