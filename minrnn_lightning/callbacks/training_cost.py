"""Time and memory of training steps, logged at validations."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.memory import peak_memory


class TrainingCost(Callback):
    """Logs time and memory of training steps at every validation.

    ``seconds_per_step`` is the median since the last validation, without the time to load data; ``peak_mb`` the peak
    memory so far in MB: of the process on a CPU, of the tensors on a GPU.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop the clock, after synchronising a GPU."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self.started)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost, and the number of steps so far: that of Lightning's loggers differs by one after resuming."""
        if not self.seconds:
            return
        if pl_module.device.type == "cuda":
            peak: float | None = torch.cuda.max_memory_allocated(pl_module.device) / 1e6
        else:
            peak = peak_memory()
        costs = {"seconds_per_step": statistics.median(self.seconds), "peak_mb": peak, "steps": trainer.global_step}
        pl_module.log_dict({name: cost for name, cost in costs.items() if cost is not None}, rank_zero_only=True)
        self.seconds.clear()


class StepCost(TrainingCost):
    """The former name of ``TrainingCost``, for existing recipes."""
