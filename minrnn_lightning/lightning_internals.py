"""What is read from Lightning's loops without a public interface, each with its reason, in one module."""

from collections.abc import Callable

from lightning.pytorch import Trainer


def batches_used(trainer: Trainer) -> int:
    """Training batches used so far, over all epochs and resumed runs; within a step, the number of its batch.

    It grows right after the optimizer's step, so it is exact even if a run is interrupted within a step. Lightning's
    ``total_batch_idx`` counts the batch of such a step twice once the run is resumed.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


def accumulates(trainer: Trainer) -> bool:
    """Whether gradients are being accumulated: the optimizer has not yet used those of the last batch."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended."""
    loop = trainer.fit_loop.epoch_loop
    return loop._should_check_val_fx(trainer.fit_loop._data_fetcher) and not loop.val_loop.skip  # type: ignore[arg-type]


def ends_training(trainer: Trainer) -> bool:
    """Whether the training ends with the batch that has just ended: by its steps, its epochs, or a request to stop."""
    loop, epochs = trainer.fit_loop, trainer.max_epochs or -1
    last_epoch = trainer.current_epoch + 1 >= epochs > 0
    return (
        trainer.global_step >= trainer.max_steps > 0
        or (last_epoch and trainer.is_last_batch)
        or (trainer.should_stop and loop._can_stop_early)  # as max_time does
    )


def logs_step(trainer: Trainer) -> bool:
    """Whether the loggers get the metrics of the current training step, one of every ``log_every_n_steps``."""
    return trainer._logger_connector.should_update_logs


def restore_with(trainer: Trainer, explain: Callable[[Exception], None]) -> None:
    """Let a Trainer pass the errors of restoring a checkpoint to a function, which may raise another one instead.

    Args:
        trainer: The Trainer.
        explain: Called with the error, whose traceback begins at the caller of Lightning's function.
    """
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, _explained(explain, getattr(connector, name)))


def _explained(explain: Callable[[Exception], None], function: Callable[..., None]) -> Callable[..., None]:
    def call(*args: object, **kwargs: object) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:
            explain(error)
            raise

    return call
