"""A plot of accuracy against sequence length in TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

if TYPE_CHECKING:
    pass

SLOW_DISK = 1e8  # bytes a second


class AccuracyByLengthPlot(Callback):
    """Draw accuracy against length after each validation and test, beside baseline and chance, into TensorBoard.

    For tasks that keep ``accuracy_by_length``, like TaggingTask; without matplotlib there is no picture.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say so where there will be no picture."""
        if find_spec("matplotlib") is None:
            rank_zero_info('No picture without matplotlib: pip install "minrnn-lightning[benchmark]"')

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, part: str) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        accuracies: dict[int, float] = getattr(pl_module, "accuracy_by_length", {})
        if len(accuracies) < 2 or not trainer.is_global_zero or not boards or find_spec("matplotlib") is None:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*accuracies.items(), strict=True), marker=".", label="accuracy")
        for name, style in (("baseline", "--"), ("chance", ":")):
            level = getattr(trainer.datamodule, name, None)  # type: ignore[attr-defined]
            if level is not None:
                axes.axhline(level, color="gray", linestyle=style, label=name)
        if max(accuracies) > 16 * min(accuracies):
            axes.set_xscale("log", base=2)
        axes.set(xlabel="length", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend()
        for board in boards:
            board.experiment.add_figure(f"{part}/accuracy by length", figure, trainer.global_step)


class LengthPicture(AccuracyByLengthPlot):
    """The former name of ``AccuracyByLengthPlot``, for recipes that have it."""
