"""Stops a run whose validation loss is not finite."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.errors import InputError


class StopOnDivergence(Callback):
    """Stops a training whose validation loss is not finite, before a checkpoint of it is saved."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check ``val/loss``, which every task of this package logs.

        Raises:
            InputError: It is infinite or NaN.
        """
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None and not loss.isfinite():
            raise InputError(
                f"the training has diverged: val/loss is {loss.item()} after step {trainer.global_step}; lower "
                "model.lr, raise model.warmup or set trainer.gradient_clip_val"
            )
