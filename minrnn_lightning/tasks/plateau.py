"""``ReduceLROnPlateau``, which advances with every validation, whatever validations are counted in."""

import sys

from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.errors import InputError

NEVER = sys.maxsize  # frequency of a schedule that Lightning shall not advance by itself


class AdvanceAfterValidation(Callback):
    """Advances the schedules with the frequency ``NEVER`` after every validation, with the metric that they monitor.

    Checkpoints are written later, as Lightning keeps the callbacks that write them at the end of the list.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance them, in all processes by the value of the first.

        Raises:
            InputError: The metric was not logged.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        for config in trainer.lr_scheduler_configs:
            if config.frequency == NEVER:
                logged = trainer.callback_metrics.get(str(config.monitor))
                value = trainer.strategy.broadcast(None if logged is None else float(logged))
                if value is None:
                    raise InputError(
                        "the metric that ReduceLROnPlateau monitors must be one of those logged, "
                        f"{', '.join(sorted(trainer.callback_metrics))}, got {config.monitor}: give another "
                        "--lr_scheduler.monitor"
                    )
                pl_module.lr_scheduler_step(config.scheduler, value)
