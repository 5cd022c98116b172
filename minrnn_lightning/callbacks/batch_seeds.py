"""The random numbers of every training batch, so that a resumed run equals an uninterrupted one."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.lightning_internals import batches_used


class SeedEveryBatch(Callback):
    """Seeds PyTorch's global generator at every training batch from seed, number of the batch and process alone.

    A run that is resumed from a checkpoint then draws the same random numbers, those of dropout for example, as one
    that was never interrupted. It is the first of the callbacks, so that the others draw from the seeded generator. The
    checkpoint contains the seed as ``checkpoint["seed"]``.

    Attributes:
        seed: That of PyTorch's generator when the first fit starts, or that of the run that is resumed.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the seed of the run."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generator."""
        assert self.seed is not None
        number = batches_used(trainer) * trainer.world_size + trainer.global_rank
        torch.manual_seed((self.seed + number) % 2**63)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the seed under the key of earlier versions."""
        checkpoint["seed"] = self.seed

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Continue with the seed of the run that is resumed."""
        self.seed = checkpoint.get("seed")
