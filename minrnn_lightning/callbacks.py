"""Lightning callbacks: samples of text, what steps cost, the end of a run that diverges, a last checkpoint."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from minrnn_lightning.data.d4rl import normalized_score
from minrnn_lightning.data.tokenizer import encode
from minrnn_lightning.environments import environment_of
from minrnn_lightning.generate import DivergedError, generate
from minrnn_lightning.memory import peak_memory
from minrnn_lightning.rollout import Mode, rollout
from minrnn_lightning.signals import ENDING, Stopped
from minrnn_lightning.tasks import PolicyTask

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SLOW_DISK = 1e8  # bytes a second


class TextSamples(Callback):
    """Let the model continue a prompt after each validation: into TensorBoard, and printed when training ends.

    The samples draw from a random generator of their own, so that training goes on as it would without them.

    Args:
        prompt: the text to continue; where the vocabulary lacks one of its characters, the first token instead.
        max_new_tokens: length of the sample in tokens.
        temperature: as for `minrnn_lightning.generate.generate`.
        top_k: as for `minrnn_lightning.generate.generate`.
        top_p: as for `minrnn_lightning.generate.generate`.
        seed: of the random generator; every sample starts from it, so that samples differ by the weights alone.
    """

    def __init__(
        self,
        prompt: str = "\n",
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> None:
        self.prompt = prompt
        self.seed = seed
        self.sampling: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        self.text = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a data module that has no vocabulary before the training starts."""
        if not hasattr(getattr(trainer, "datamodule", None), "tokenizer"):
            raise MisconfigurationException("TextSamples needs a data module with a `tokenizer`, like TextDataModule")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample and log; on the first process only, and not where the weights are spread over processes."""
        if trainer.sanity_checking or not trainer.is_global_zero or isinstance(trainer.strategy, FSDPStrategy):
            return
        tokenizer: Tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        try:
            prompt = encode(tokenizer, self.prompt) or [0]
        except ValueError:  # another vocabulary than the recipe's
            prompt = [0]
        device = pl_module.device
        generator = torch.Generator(device).manual_seed(self.seed)
        tokens = generate(pl_module, torch.tensor([prompt], device=device), generator=generator, **self.sampling)  # type: ignore[arg-type]
        try:
            self.text = tokenizer.decode([*prompt, *map(int, tokens)], skip_special_tokens=False)
        except DivergedError as error:
            rank_zero_warn(f"No sample of text after step {trainer.global_step}: {error}")
            self.text = ""
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                markdown = "\n".join("    " + line for line in self.text.splitlines())  # shown as it is
                logger.experiment.add_text("sample", markdown, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last sample."""
        if self.text:
            print(f"\nA sample after {trainer.global_step} steps:\n{self.text}\n", flush=True)


class LengthPicture(Callback):
    """Draw accuracy against length after each validation and test, beside baseline and chance, into TensorBoard.

    For tasks that keep ``accuracy_by_length``, like TaggingTask; without matplotlib there is no picture.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say so where there will be no picture."""
        if find_spec("matplotlib") is None:
            rank_zero_info('No picture without matplotlib: pip install "minrnn-lightning[benchmark]"')

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the test."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: Trainer, pl_module: LightningModule, part: str) -> None:
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        accuracies: dict[int, float] = getattr(pl_module, "accuracy_by_length", {})
        if len(accuracies) < 2 or not trainer.is_global_zero or not boards or find_spec("matplotlib") is None:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*accuracies.items(), strict=True), marker=".", label="accuracy")
        for name, style in (("baseline", "--"), ("chance", ":")):
            level = getattr(trainer.datamodule, name, None)  # type: ignore[attr-defined]
            if level is not None:
                axes.axhline(level, color="gray", linestyle=style, label=name)
        if max(accuracies) > 16 * min(accuracies):
            axes.set_xscale("log", base=2)
        axes.set(xlabel="length", ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.legend()
        for board in boards:
            board.experiment.add_figure(f"{part}/accuracy by length", figure, trainer.global_step)


class EnvironmentReturn(Callback):
    """Let a policy act in its environment after validations, and log the return that it gets there.

    Logged: ``val/return`` of the first target; for every target ``val/return/<target>`` and, where D4RL has references
    for the environment, ``val/score/<target>``; without the conditioning ``val/score``. At a test the same as
    ``test/…``. Every time the same episodes start, and in every process, so that all agree.

    Args:
        env_id: The environment; that of the training data if None.
        episodes: How many to play for each target.
        targets: Returns to ask for; the highest of the training data if None.
        mode: As for `minrnn_lightning.rollout.rollout`.
        window: As for `minrnn_lightning.rollout.rollout`; the length of the rows of the training data if None.
        every_n_validations: Play at every so many validations, and at that of the last step.
        seed: Of the first episode.
    """

    def __init__(
        self,
        env_id: str | None = None,
        episodes: int = 10,
        targets: list[float] | None = None,
        mode: Mode = "carry",
        window: int | None = None,
        every_n_validations: int = 1,
        seed: int = 1_000_000,
    ) -> None:
        if every_n_validations < 1:
            raise ValueError(f"every_n_validations must be at least 1, got {every_n_validations}")
        self.env_id = env_id
        self.targets = targets
        self.every_n_validations = every_n_validations
        self.options: dict[str, Any] = {"episodes": episodes, "mode": mode, "window": window, "seed": seed}
        self.validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse another task before the training starts."""
        if not isinstance(pl_module, PolicyTask):
            raise MisconfigurationException("EnvironmentReturn needs a PolicyTask")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play, if it is time."""
        if trainer.sanity_checking:
            return
        self.validations += 1
        last = trainer.global_step >= trainer.max_steps > 0 or trainer.state.fn == "validate"
        if last or self.validations % self.every_n_validations == 0:
            self._play(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play."""
        self._play(trainer, pl_module, "test")

    def _play(self, trainer: Trainer, task: LightningModule, part: str) -> None:
        assert isinstance(task, PolicyTask)
        known = task.environment
        env_id = environment_of(task, self.env_id)
        if env_id is None:
            raise MisconfigurationException("the data do not say which environment they are from: give an env_id")
        targets: list[Any] = self.targets or [known["max_return"]] if task.condition_on_return else [None]
        options = {**self.options, "window": self.options["window"] or known.get("window", 20)}
        options |= {"episodes": 1} if trainer.fast_dev_run else {}  # type: ignore[attr-defined]
        for number, played in enumerate(rollout(task, env_id, targets=targets, **options)):
            mean = statistics.mean(played.returns)
            ending = "" if played.target is None else f"/{played.target:g}"
            figures = {f"{part}/return{ending}": mean, f"{part}/score{ending}": normalized_score(env_id, mean)}
            figures |= {} if number else {f"{part}/return": mean}
            shown = {name: torch.tensor(value) for name, value in figures.items() if value is not None}
            task.log_dict(shown, prog_bar=False, sync_dist=True)


class StepCost(Callback):
    """Logs what training steps cost, at every validation.

    ``seconds_per_step`` is the median since the last validation, without waiting for data, ``peak_mb`` the most memory
    so far: of the process on a CPU, of the tensors on a GPU.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop it, when a GPU has finished too."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self.started)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log them, and the number of steps so far: that of Lightning's loggers differs by one after resuming."""
        if not self.seconds:
            return
        if pl_module.device.type == "cuda":
            peak: float | None = torch.cuda.max_memory_allocated(pl_module.device) / 1e6
        else:
            peak = peak_memory()
        costs = {"seconds_per_step": statistics.median(self.seconds), "peak_mb": peak, "steps": trainer.global_step}
        pl_module.log_dict({name: cost for name, cost in costs.items() if cost is not None}, rank_zero_only=True)
        self.seconds.clear()


class Divergence(Callback):
    """Ends a training whose validation loss is no finite number, before a checkpoint is made of it."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at ``val/loss``, which every task here logs.

        Raises:
            ValueError: It is infinite or no number.
        """
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None and not loss.isfinite():
            raise ValueError(
                f"the training has diverged: val/loss is {loss.item()} after step {trainer.global_step}; lower "
                "model.lr, raise model.warmup or set trainer.gradient_clip_val"
            )


class AtTrainEnd(Callback):
    """Calls a function when training ends, before the callbacks that come after it.

    Args:
        function: Gets the trainer.
    """

    def __init__(self, function: Callable[[Trainer], None]) -> None:
        self.function = function

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call it."""
        self.function(trainer)


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every validation, every few minutes, when training ends, and at Ctrl-C.

    Ctrl-C ends the training after the step in progress and the validation that follows it, in all processes alike: an
    interrupt inside the optimizer would leave weights of which some have taken the step and some have not, and one
    before the validation would leave that out of the curve. A second Ctrl-C ends it at once. SIGTERM and SIGHUP do the
    same. While gradients are accumulated, which no checkpoint holds, it waits until they are used.

    Args:
        minutes: Time between two checkpoints where no validation comes before; 0 waits for the validation. A model so
            large that writing it would take more than 1 % of the time is written less often.
    """

    def __init__(self, minutes: float = 5.0) -> None:
        super().__init__(filename="last", enable_version_counter=False, save_top_k=0)
        self.minutes = minutes
        self.signal: int | None = None  # that asked to end
        self.handlers: dict[int, Any] = {}
        self.due = False  # after a validation amid the accumulation of gradients
        self.finished = False
        self.cost, self.saved_at = 0.0, 0.0  # seconds that a save takes, and time of the last one

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C and the like, and start the clock."""
        super().on_train_start(trainer, pl_module)
        self.signal, self.due, self.finished = None, False, False
        self.saved_at = time.monotonic()
        # Until it is measured: weights and AdamW's two moments at the speed of a slow disk.
        self.cost = 3 * sum(p.numel() * p.element_size() for p in pl_module.parameters()) / SLOW_DISK
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN and not _requeues(handler):
                    self.handlers[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._give_back()
        what = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        rank_zero_info(f"\n{what}: training ends after this step; once more ends it at once")

    def _give_back(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save if it is time, and end if that is wanted, unless gradients or a validation are to come first."""
        loop = trainer.fit_loop.epoch_loop
        validates = loop._should_check_val_fx(trainer.fit_loop._data_fetcher) and not loop.val_loop.skip  # type: ignore[arg-type]
        if validates or loop._should_accumulate():
            return
        elapsed = time.monotonic() - self.saved_at
        timely = self.minutes > 0 and elapsed >= max(60 * self.minutes, 100 * self.cost)
        # A checkpoint of weights that are lost would take the place of one that can be gone on with.
        loss = trainer.callback_metrics.get("train/loss")
        timely = timely and trainer.is_global_zero and (loss is None or bool(loss.isfinite()))
        self._save_or_end(trainer, timely)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and end if that is wanted; after an interrupt the validation is finished first."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            if trainer.fit_loop.epoch_loop._should_accumulate():
                self.due = True
            else:
                self._save_or_end(trainer, True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: an epoch of a stream means nothing."""

    def _save_or_end(self, trainer: Trainer, save: bool) -> None:
        """Save if any process wants it; end if any was asked to."""
        end = self.signal is not None
        save = save or self.due or end
        if trainer.world_size > 1:
            save = trainer.strategy.reduce_boolean_decision(save, all=False)
            end = save and trainer.strategy.reduce_boolean_decision(end, all=False)
        if save:
            self._save(trainer)
            self.due = False
        if end:
            rank_zero_info(f"Saved {self.dirpath}/last.ckpt; --ckpt_path continues from it")
            raise Stopped(self.signal or signal.SIGINT)

    def finish(self, trainer: Trainer) -> None:
        """Save at the end of the training, whether or not the last step was validated.

        That is before a callback such as EMAWeightAveraging puts its average in the place of the trained weights, from
        which a longer run would then start.
        """
        if not self.finished:
            self._save(trainer)
            self.finished = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, unless ``finish`` was called before."""
        self.finish(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.dirpath and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            started = time.monotonic()
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)
            self.saved_at = time.monotonic()
            self.cost = self.saved_at - started

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C and the like back."""
        super().teardown(trainer, pl_module, stage)
        self._give_back()


def _requeues(handler: Any) -> bool:
    """Whether this handler of Lightning saves and puts a job of Slurm back into the queue."""
    parts = getattr(handler, "signal_handlers", [handler])
    return any(getattr(part, "__name__", "") == "_slurm_sigusr_handler_fn" for part in parts)
