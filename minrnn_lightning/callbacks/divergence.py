"""Ends a run whose validation loss is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.errors import InputError

if TYPE_CHECKING:
    pass

SLOW_DISK = 1e8  # bytes a second


class StopOnDivergence(Callback):
    """Ends a training whose validation loss is no finite number, before a checkpoint is made of it."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at ``val/loss``, which every task here logs.

        Raises:
            InputError: It is infinite or no number.
        """
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None and not loss.isfinite():
            raise InputError(
                f"the training has diverged: val/loss is {loss.item()} after step {trainer.global_step}; lower "
                "model.lr, raise model.warmup or set trainer.gradient_clip_val"
            )
