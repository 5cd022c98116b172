"""What is read from Lightning's loops without a public interface, each with its reason, in one module."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from lightning.pytorch import Trainer


def batches_started(trainer: Trainer) -> int:
    """Training batches started so far in this process, without the current one, over all epochs and resumed runs."""
    return int(trainer.fit_loop.epoch_loop.total_batch_idx)


def batches_used(trainer: Trainer) -> int:
    """Training batches used so far in this process, over all epochs and resumed runs.

    It grows right after the optimizer's step, so it is exact even if a run is interrupted within a step.
    """
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


def accumulates(trainer: Trainer) -> bool:
    """Whether gradients are being accumulated: the optimizer has not yet used those of the last batch."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the training batch that has just ended."""
    loop = trainer.fit_loop.epoch_loop
    return loop._should_check_val_fx(trainer.fit_loop._data_fetcher) and not loop.val_loop.skip  # type: ignore[arg-type]


def restore_within(trainer: Trainer, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Let a Trainer restore a checkpoint inside a context, which can translate errors of a damaged one.

    Args:
        trainer: The Trainer.
        context: Makes the context.
    """
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, _within(context, getattr(connector, name)))


def _within(context: Callable[[], AbstractContextManager[None]], function: Callable[..., None]) -> Callable[..., None]:
    def call(*args: object, **kwargs: object) -> None:
        with context():
            function(*args, **kwargs)

    return call
