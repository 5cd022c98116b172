"""Lightning callbacks: samples of text during training, what steps cost, a last checkpoint at Ctrl-C too."""

from __future__ import annotations

import signal
import statistics
import threading
import time
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
from lightning.pytorch.utilities import rank_zero_info

from minrnn_lightning.data.d4rl import normalized_score
from minrnn_lightning.data.tokenizer import encode
from minrnn_lightning.generate import generate
from minrnn_lightning.memory import peak_memory
from minrnn_lightning.rollout import Mode, rollout
from minrnn_lightning.tasks import PolicyTask

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        self.text = tokenizer.decode([*prompt, *(int(token) for token in tokens)], skip_special_tokens=False)
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
        env_id = self.env_id or known.get("env_id")
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
            peak = torch.cuda.max_memory_allocated(pl_module.device) / 1e6
        else:
            peak = peak_memory()
        costs = {"seconds_per_step": statistics.median(self.seconds), "peak_mb": peak, "steps": trainer.global_step}
        pl_module.log_dict(costs, rank_zero_only=True)
        self.seconds.clear()


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every validation, when training ends, and at Ctrl-C.

    Ctrl-C ends the training after the step in progress, in all processes alike: an interrupt inside the optimizer
    would leave weights of which some have taken the step and some have not. A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", enable_version_counter=False)
        self.interrupted = False
        self.handler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C."""
        super().on_train_start(trainer, pl_module)
        if threading.current_thread() is threading.main_thread():
            self.handler = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, self.handler)
        rank_zero_info("\nCtrl-C: training ends after this step; press it again to end at once")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save and end if Ctrl-C was pressed during the step."""
        super().on_train_batch_end(trainer, *args)
        interrupted = self.interrupted
        if trainer.world_size > 1:
            interrupted = trainer.strategy.reduce_boolean_decision(interrupted, all=False)
        if interrupted:
            self._save(trainer)
            rank_zero_info(f"Saved {self.dirpath}/last.ckpt; --ckpt_path continues from it")
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, whether or not the last step was validated."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if self.dirpath and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", weights_only=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        super().teardown(trainer, pl_module, stage)
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)
            self.handler = None
