"""Time and memory of training steps, logged at validations."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.batches import data_facts
from minrnn_lightning.lightning_internals import accumulates
from minrnn_lightning.memory import peak_memory


class TrainingCost(Callback):
    """Logs time and memory of training steps at every validation.

    ``seconds_per_step`` is the median since the last validation, of all batches of which a step accumulates the
    gradients, without the time to load data. Where data are collected in an environment, ``collect_seconds_per_step``
    is what a step has of that: the time of the last rollout, divided by the steps in which it is used. ``peak_mb`` is
    the peak memory so far in MB: of the process on a CPU, of the tensors on a GPU.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []  # of each step since the last validation
        self.of_step = 0.0  # of the batches so far of the step in progress
        self.started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop the clock, after synchronising a GPU."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.of_step += time.perf_counter() - self.started
        if not accumulates(trainer):
            self.seconds.append(self.of_step)
            self.of_step = 0.0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the cost, and the number of steps so far: that of Lightning's loggers differs by one after resuming."""
        if not self.seconds:
            return
        if pl_module.device.type == "cuda":
            peak: float | None = torch.cuda.max_memory_allocated(pl_module.device) / 1e6
        else:
            peak = peak_memory()
        collecting = data_facts(trainer).collect_seconds_per_batch
        costs = {
            "seconds_per_step": statistics.median(self.seconds),
            "collect_seconds_per_step": collecting and collecting * trainer.accumulate_grad_batches,
            "peak_mb": peak,
            "steps": trainer.global_step,
        }
        pl_module.log_dict({name: cost for name, cost in costs.items() if cost is not None}, rank_zero_only=True)
        self.seconds.clear()


class StepCost(TrainingCost):
    """The former name of ``TrainingCost``, for existing recipes."""
