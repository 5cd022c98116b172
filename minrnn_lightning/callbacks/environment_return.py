"""The return of a policy in its environment, logged at validations."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from minrnn_lightning.data.offline_rl.d4rl import normalized_score
from minrnn_lightning.errors import InputError
from minrnn_lightning.lightning_internals import ends_training
from minrnn_lightning.rl.environments import arguments_of, environment_of, make
from minrnn_lightning.rl.rollout import Mode, rollout
from minrnn_lightning.tasks import PolicyTask


class EnvironmentReturn(Callback):
    """Runs a policy in its environment after validations, and logs the returns.

    Logged: ``val/return`` of the first target; for every target ``val/return/<target>`` and, where D4RL has references
    for the environment, ``val/score/<target>``; without conditioning on returns ``val/score``. At a test the same as
    ``test/…``. The episodes start from the same seeds every time and in every process, so that all processes agree.

    Args:
        env_id: The environment; that of the training data if None. That of the training data has the arguments and the
            time limit that they give.
        episodes: Number of episodes for each target.
        targets: Returns to condition on; the highest of the training data if None.
        mode: As for `minrnn_lightning.rl.rollout.rollout`.
        window: As for `minrnn_lightning.rl.rollout.rollout`; the length of the rows of the training data if None.
        every_n_validations: Run a rollout after every n-th validation, and always after the last step, that of
            ``max_steps``, ``max_epochs`` or ``max_time``.
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
            raise InputError(f"every_n_validations must be at least 1, got {every_n_validations}")
        self.env_id = env_id
        self.targets = targets
        self.every_n_validations = every_n_validations
        self.options: dict[str, Any] = {"episodes": episodes, "mode": mode, "window": window, "seed": seed}
        self.validations = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse another task and an unknown environment before the training starts."""
        if not isinstance(pl_module, PolicyTask):
            raise MisconfigurationException("EnvironmentReturn needs a PolicyTask")
        if self.env_id:
            try:
                make(self.env_id).close()
            except InputError as error:
                raise InputError(f"env_id: {error}") from error

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an environment or a target return that nothing names, before the training starts."""
        self._environment_and_targets(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a rollout if one is due."""
        if trainer.sanity_checking:
            return
        self.validations += 1
        last = trainer.state.fn == "validate" or ends_training(trainer)
        if last or self.validations % self.every_n_validations == 0:
            self._rollout(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run a rollout."""
        self._rollout(trainer, pl_module, "test")

    def _environment_and_targets(self, task: LightningModule) -> tuple[str, list[Any]]:
        assert isinstance(task, PolicyTask)
        env_id = environment_of(task, self.env_id)
        if env_id is None:
            raise MisconfigurationException("the data do not say which environment they are from: give an env_id")
        if not task.condition_on_return:
            return env_id, [None]
        if not self.targets and "max_return" not in task.environment:
            raise InputError(
                "this policy is conditioned on a target return, and the data do not say which is the highest: give "
                "targets, such as [3600]"
            )
        return env_id, self.targets or [task.environment["max_return"]]

    def _rollout(self, trainer: Trainer, task: LightningModule, split: str) -> None:
        assert isinstance(task, PolicyTask)
        env_id, targets = self._environment_and_targets(task)
        options = {**self.options, "window": self.options["window"] or task.environment.get("window", 20)}
        options["env_args"] = arguments_of(task, env_id)
        options |= {"episodes": 1} if trainer.fast_dev_run else {}  # type: ignore[attr-defined]
        for number, result in enumerate(rollout(task, env_id, targets=targets, **options)):
            mean = statistics.mean(result.returns)
            ending = "" if result.target is None else f"/{result.target:g}"
            figures = {f"{split}/return{ending}": mean, f"{split}/score{ending}": normalized_score(env_id, mean)}
            figures |= {} if number else {f"{split}/return": mean}
            shown = {name: torch.tensor(value) for name, value in figures.items() if value is not None}
            task.log_dict(shown, prog_bar=False, sync_dist=True)
