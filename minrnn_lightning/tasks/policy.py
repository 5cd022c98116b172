"""``PolicyTask``: return-conditioned behaviour cloning on recorded trajectories."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from minrnn_lightning.batches import TrajectoryBatch, data_facts
from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks.action_bounds import exact
from minrnn_lightning.tasks.carried import CarryingTask
from minrnn_lightning.tasks.metrics import Mean
from minrnn_lightning.tasks.policy_model import BOUNDS, PolicyModel


class PolicyTask(CarryingTask, PolicyModel):
    """Imitate recorded actions conditioned on the return-to-go; a rollout is conditioned on a high target return.

    A batch has the attributes of ``TrajectoryBatch``: ``observations`` float32 (batch, steps, input_size) and
    ``actions`` float32 (batch, steps, output_size), both in the units of the environment, or ``actions`` int64
    (batch, steps) if they are discrete; ``returns_to_go`` float32 (batch, steps), the sum of the rewards from a step
    on; ``timesteps`` int64 (batch, steps), counted from the start of the episode; ``mask`` bool (batch, steps), True at
    real steps, which come before the padding; ``reset`` bool (batch, steps), True at the first step of an episode. Rows
    of a ``TrajectoryStreamBatch`` may continue those of the batch before.

    Observations are normalised with the mean and standard deviation of the data module, actions with its bounds
    ``action_low`` and ``action_high``, which become −1 and 1; the checkpoint contains all of them. Without such a
    data module the bounds are −1 and 1, unless ``bound_actions`` was called, and a warning reports actions outside.

    Logged: ``train/loss``, the mean over the real steps of each batch; ``val/loss`` and ``test/loss``, the mean over
    all real steps, however they are divided into batches: the squared error of an action's normalised components, or
    nats per discrete action. A batch without a real step is ignored; one whose loss is NaN makes the mean over all
    batches NaN. The arguments are those of ``PolicyModel``.
    """

    batch_type = TrajectoryBatch

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Mean loss of n steps.

        Args:
            outputs: Actions or logits, (n, output_size).
            actions: Actions (n, output_size), or int64 (n,) if they are discrete.

        Returns:
            The mean squared error with half the distance between the bounds as unit; nats per action if they are
            discrete.
        """
        if self.discrete:
            return F.cross_entropy(outputs.float(), actions)
        return F.mse_loss(outputs.float() / self.action_scale, actions / self.action_scale)

    def batch_loss(self, batch: Any) -> Tensor:
        """Mean loss over the real steps of a batch; 0 if there is none."""
        if not self.discrete and not self._bounds_of_data():
            self.action_bounds.check(batch.actions, batch.mask)
        outputs, actions = self._outputs(batch)[batch.mask], batch.actions[batch.mask]
        return self.loss(outputs, actions) if len(actions) else outputs.float().sum()

    def setup(self, stage: str) -> None:
        """Take the statistics of the observations and the bounds of the actions from the data module.

        ``init_from`` overrides mean and standard deviation of the observations; the bounds stay those of the data, so
        that the policy can take every action in them.
        """
        data = data_facts(self._trainer)
        if stage == "fit" and data.observation_mean is not None:
            if data.discrete != self.discrete:
                name, value = ("discrete", "true") if data.discrete else ("continuous", "false")
                raise InputError(f"the actions of the data are {name}: give --model.discrete {value}")
            self.observation_mean.copy_(torch.as_tensor(data.observation_mean))
            self.observation_std.copy_(torch.as_tensor(data.observation_std))
            self.environment |= self._environment_of_data()
            if data.action_low is not None:
                self.bound_actions(data.action_low, data.action_high)
        super().setup(stage)
        self.action_bounds.restart_check()

    def make_metrics(self) -> dict[str, Metric]:
        """The mean loss over real steps."""
        return {"loss": Mean()}

    def evaluate(self, batch: Any) -> None:
        """Add a batch to the mean."""
        self.metrics["loss"].update(self.batch_loss(batch), batch.mask.sum())

    def log_metrics(self, part: str) -> None:
        """Log the mean, and warn of actions outside the bounds."""
        self.action_bounds.warn()
        super().log_metrics(part)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Warn of actions outside the bounds, only once an epoch because that synchronises with the device."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if batch_idx == 0:
            self.action_bounds.warn()

    def on_train_end(self) -> None:
        """Warn of actions outside the bounds in the last epoch."""
        super().on_train_end()
        self.action_bounds.warn()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The actions of every step, as ``step`` returns them."""
        return self.decide(self._outputs(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the environment of the data, the bounds, the highest return in the data and the length of its rows."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["environment"] = self.environment

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what ``on_save_checkpoint`` saved; a run that is resumed with other data keeps the bounds alone."""
        super().on_load_checkpoint(checkpoint)
        self.environment = dict(checkpoint.get("environment", {}))
        if self._trainer is not None and self._trainer.state.fn == "fit":  # whose setup came before
            self.environment |= self._environment_of_data()
        if all(name in self.environment for name in BOUNDS):
            self.bound_actions(*(self.environment[name] for name in BOUNDS))
        else:
            self.action_bounds.reset()

    def _environment_of_data(self) -> dict[str, Any]:
        """What the data module knows of its environment, as the checkpoint contains it."""
        data = data_facts(self._trainer)
        if data.observation_mean is None:
            return {}
        assert data.max_return is not None, "data that have observation_mean have these too"
        assert data.length is not None
        environment: dict[str, Any] = {"env_id": data.env_id, "env_args": dict(data.env_args or {})}
        return environment | {"max_return": float(data.max_return), "window": int(data.length)}

    def _outputs(self, batch: Any) -> Tensor:
        steps = batch.observations, batch.actions, batch.returns_to_go, batch.timesteps
        continues = getattr(batch, "continues", False)
        starts = continues or batch.reset[:, 1:].any()  # a row that continues none starts from the initial state anyhow
        reset = batch.reset if starts else None
        delta_t = getattr(batch, "delta_t", None)
        return self.carry(batch, lambda state: self.forward_from(state, *steps, reset, delta_t))

    def _bounds_of_data(self) -> bool:
        """Whether the bounds are those of the data module, which has checked its actions itself."""
        data = data_facts(self._trainer)
        bounds = dict(zip(BOUNDS, (data.action_low, data.action_high), strict=True))
        return data.action_low is not None and all(
            exact(bound).tolist() == self.environment.get(name) for name, bound in bounds.items()
        )
