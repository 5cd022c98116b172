"""TrainingCost logs the time of a step of the optimizer, with all that belongs to it and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from online import agent, rollouts, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minrnn_lightning.callbacks import TrainingCost, training_cost

BATCH, STEP, VALIDATION = 1, 10, 1000  # seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is moved."""
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training_cost, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


class Timed(LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.layer = clock, nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.clock.now += BATCH
        return self.layer(batch[0]).sum()

    def validation_step(self, batch, batch_idx):
        self.clock.now += VALIDATION

    def optimizer_step(self, *args, **options):
        super().optimizer_step(*args, **options)
        self.clock.now += STEP

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Logged(Callback):
    def __init__(self):
        self.costs = []

    def on_validation_end(self, trainer, pl_module):
        self.costs.append(tuple(trainer.callback_metrics[name].item() for name in ("steps", "seconds_per_step")))


def batches(count):
    return DataLoader(TensorDataset(torch.ones(count, 1)), batch_size=1)


@pytest.mark.parametrize(("interval", "steps"), [(8, [2, 4]), (6, [1, 3])])
def test_a_step_takes_all_its_batches(tmp_path, clock, interval, steps):
    """Also one with a validation between its batches, as after 6 of them."""
    logged = Logged()
    options = {"accumulate_grad_batches": 4, "val_check_interval": interval, "callbacks": [TrainingCost(), logged]}
    trainer(tmp_path, 4, **options).fit(Timed(clock), batches(16), batches(1))
    assert logged.costs == [(each, 4 * BATCH + STEP) for each in steps]


def test_a_step_has_its_share_of_a_rollout(tmp_path, clock):
    data = rollouts()  # of 2 epochs with 3 minibatches
    fit = trainer(tmp_path, 6, val_check_interval=6, callbacks=[TrainingCost()])
    fit.fit(agent(data), data)
    assert fit.callback_metrics["collect_steps_per_s"] > 0
    rollout = 6 * 24 / fit.callback_metrics["collect_steps_per_s"].item()  # seconds
    assert fit.callback_metrics["collect_seconds_per_step"].item() == pytest.approx(rollout / 6, rel=1e-4)
    assert fit.callback_metrics["seconds_per_step"] == 0
