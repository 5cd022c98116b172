"""``last.ckpt``, written regularly and when a run is interrupted."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from minrnn_lightning.lightning_internals import accumulates, validates_next
from minrnn_lightning.signals import TERMINATION_SIGNALS, Stopped

SLOW_DISK = 1e8  # bytes per second


class AtTrainEnd(Callback):
    """Calls a function when training ends, before the callbacks after it in the list.

    Args:
        function: Called with the Trainer.
    """

    def __init__(self, function: Callable[[Trainer], None]) -> None:
        self.function = function

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the function."""
        self.function(trainer)


class InterruptibleCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every validation, every few minutes, when training ends, and at Ctrl-C.

    Ctrl-C ends the training after the step in progress and the validation that follows it, in all processes alike: an
    interrupt inside the optimizer would leave some weights updated and others not, and one before the validation would
    leave that out of the curve. A second Ctrl-C ends it at once. SIGTERM and SIGHUP do the same. While gradients are
    accumulated, which no checkpoint contains, it waits until the optimizer has used them. Lightning's handler of the
    signal that requeues a Slurm job, which writes a checkpoint too, runs at the same moments: inside a step it would
    wait for ever for whatever lock the step holds.

    Args:
        minutes: Longest time between two checkpoints; 0 writes them at validations only. A model so large that writing
            it would take more than 1 % of the time is written less often.
    """

    def __init__(self, minutes: float = 5.0) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_top_k=0)
        self.minutes = minutes
        self.signal: int | None = None  # the one that requested termination
        self.handlers: dict[int, Any] = {}
        self.requeue: Callable[[], None] | None = None  # of a Slurm job, by Lightning
        self.requeues = False  # requested by a signal
        self.due = False  # since a validation while gradients were accumulated
        self.finished = False
        self.cost, self.saved_at = 0.0, 0.0  # seconds that a save takes, and time of the last one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers, and start the clock."""
        super().on_train_start(trainer, pl_module)
        self.signal, self.due, self.finished, self.requeue, self.requeues = None, False, False, None, False
        self.saved_at = time.monotonic()
        # Until it is measured: weights and AdamW's two moments at the speed of a slow disk.
        self.cost = 3 * sum(p.numel() * p.element_size() for p in pl_module.parameters()) / SLOW_DISK
        if threading.current_thread() is threading.main_thread():
            for number in signal.valid_signals():
                handler: Any = signal.getsignal(number)
                if _requeues(handler):
                    self.requeue = functools.partial(handler, number, None)
                    self.handlers[number] = signal.signal(number, self._request_requeue)
                elif number in TERMINATION_SIGNALS and handler is not signal.SIG_IGN:
                    self.handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore_handlers()
        what = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        rank_zero_info(f"\n{what}: training ends after this step; once more ends it at once")

    def _request_requeue(self, number: int, frame: FrameType | None) -> None:
        self.requeues = True

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save if it is due, and end if a signal requested it, after accumulated gradients and a validation."""
        if validates_next(trainer) or accumulates(trainer):
            return
        elapsed = time.monotonic() - self.saved_at
        save = self.minutes > 0 and elapsed >= max(60 * self.minutes, 100 * self.cost)
        # A checkpoint of diverged weights would replace one from which training can continue.
        loss = trainer.callback_metrics.get("train/loss")
        save = save and trainer.is_global_zero and (loss is None or bool(loss.isfinite()))
        self._save_or_end(trainer, save)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and end if a signal requested it; after an interrupt the validation is finished first."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if accumulates(trainer):
                self.due = True
            else:
                self._save_or_end(trainer, True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing: an epoch of an endless stream has no meaning."""

    def _save_or_end(self, trainer: Trainer, save: bool) -> None:
        """Save if any process should; requeue or end if any has received the signal for it."""
        end, requeue = self.signal is not None, self.requeues
        save = save or self.due or end or requeue
        if trainer.world_size > 1:
            save = trainer.strategy.reduce_boolean_decision(save, all=False)
            end = save and trainer.strategy.reduce_boolean_decision(end, all=False)
            requeue = save and trainer.strategy.reduce_boolean_decision(requeue, all=False)
        if save:
            self._save(trainer)
            self.due = False
        if requeue and self.requeue is not None:
            self.requeues = False
            self.requeue()
        if end:
            rank_zero_info(f"Saved {self.dirpath}/last.ckpt; --ckpt_path continues from it")
            raise Stopped(self.signal or signal.SIGINT)

    def finish(self, trainer: Trainer) -> None:
        """Save at the end of the training, whether or not the last step was validated.

        That is before a callback such as EMAWeightAveraging replaces the trained weights by their average, from which a
        longer run would then start.
        """
        if not self.finished:
            self._save(trainer)
            self.finished = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless ``finish`` has."""
        self.finish(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.dirpath and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            started = time.monotonic()
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
            self.saved_at = time.monotonic()
            self.cost = self.saved_at - started

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        super().teardown(trainer, pl_module, stage)
        self._restore_handlers()


def _requeues(handler: Any) -> bool:
    """Whether this is Lightning's handler that saves a Slurm job and requeues it."""
    parts = getattr(handler, "signal_handlers", [handler])
    return any(getattr(part, "__name__", "") == "_slurm_sigusr_handler_fn" for part in parts)
