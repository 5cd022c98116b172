"""Progress of a training: a bar with the time left in a terminal, lines elsewhere, and a summary of the modules."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from rich import get_console

from minrnn_lightning.results import print_table

MINUTES = 3.0  # between two lines, where no validation comes sooner


class Pace:
    """Speed of the steps since the training started, validations and checkpoints included.

    Args:
        trainer: A Trainer whose training starts.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.started, self.first = time.monotonic(), trainer.global_step
        self.steps = trainer.estimated_stepping_batches  # in all; infinite or -1 without a limit

    def steps_per_second(self, trainer: Trainer) -> float:
        """Training steps per second so far; 0 before the first one has ended."""
        return (trainer.global_step - self.first) / max(time.monotonic() - self.started, 1e-9)

    def time_left(self, trainer: Trainer) -> str:
        """Hours, minutes and seconds until the last step at this speed; empty where it is unknown."""
        speed = self.steps_per_second(trainer)
        if not speed or not 0 <= self.steps < float("inf"):
            return ""
        return str(timedelta(seconds=round(max(0, self.steps - trainer.global_step) / speed)))


class TrainingProgressBar(RichProgressBar):
    """Lightning's bar of an epoch, with the time left until the last step of the training."""

    pace: Pace | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.pace = Pace(trainer)
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Add the time left to the metrics at the end of the bar."""
        left = self.pace.time_left(trainer) if self.pace else ""
        return {**super().get_metrics(trainer, pl_module), **({"left": left} if left else {})}

    def _get_train_description(self, current_epoch: int) -> str:
        """The epoch, without Lightning's number of the last one: that would be -2 for an unlimited number."""
        return f"Epoch {current_epoch}".ljust(len(self.validation_description))


class ProgressLines(Callback):
    """Prints step, loss, speed and time left at every validation and every few minutes, where there is no bar.

    Args:
        minutes: Longest time between two lines.
    """

    def __init__(self, minutes: float = MINUTES) -> None:
        self.minutes = minutes
        self.printed = 0.0
        self.pace: Pace | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.pace, self.printed = Pace(trainer), time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Print a line if the last one is ``minutes`` ago."""
        if time.monotonic() - self.printed >= 60 * self.minutes:
            self._print(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line with the results of the validation."""
        if not trainer.sanity_checking:
            self._print(trainer)

    def _print(self, trainer: Trainer) -> None:
        self.printed = time.monotonic()
        if self.pace is None or not trainer.is_global_zero:
            return
        metrics = trainer.progress_bar_metrics
        parts = [f"step {trainer.global_step:,}", *(f"{name} {value:.4g}" for name, value in metrics.items())]
        parts.append(f"{self.pace.steps_per_second(trainer):.3g} steps/s")
        left = self.pace.time_left(trainer)
        print(", ".join([*parts, *([f"{left} left"] if left else [])]), flush=True)


class ModuleSummary(RichModelSummary):
    """Table of the modules and their parameters, without FLOPs, which Lightning cannot count without a batch."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Print the table."""
        columns = {head.strip(): cells for head, cells in summary_data if head.strip() in ("Name", "Type", "Params")}
        rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        frozen = total_parameters - trainable_parameters
        title = f"{total_parameters:,} parameters" + (f", {frozen:,} of them frozen" if frozen else "")
        print_table(title, rows, left=["Name", "Type"])


def shows_bar() -> bool:
    """Whether standard output is a terminal or a notebook, where a bar can move."""
    return (sys.stdout is not None and sys.stdout.isatty()) or get_console().is_jupyter
