"""``PolicyTask``: actions from observations and the return still wanted, learnt from trajectories that others left."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from minrnn_lightning.nn.mixers.mixer import State
from minrnn_lightning.tasks.steps import StepEncoder
from minrnn_lightning.tasks.task import Task


class PolicyTask(Task):
    """Imitate the actions of trajectories, given the return that followed them: ask for a high one, and act.

    A batch has the attributes ``observations`` float32 (batch, steps, input_size), as they are; ``actions`` float32
    (batch, steps, output_size) from −1 to 1, or int64 (batch, steps) if they are discrete; ``returns_to_go`` float32
    (batch, steps), the sum of the rewards from a step on; ``timesteps`` int64 (batch, steps), counted from the start of
    the episode; ``mask`` bool (batch, steps), True at real steps, which come first; ``reset`` bool (batch, steps), True
    where an episode starts. Observations are normalised with the mean and deviation of the data module, which the
    checkpoint keeps. Logged: ``train/loss`` of each batch, ``val/loss`` and ``test/loss`` over all real steps: the mean
    squared error of an action's components, or nats per discrete action. Source: Decision Transformer, Chen et al.
    2021, https://arxiv.org/abs/2106.01345.

    Args:
        input_size: Numbers in an observation; the data module sets it on the command line.
        output_size: Numbers in an action, or discrete actions to choose from; the data module sets it on the command
            line.
        layout: ``decision_transformer`` has three tokens a step, return, observation and action, and reads the action
            at the observation; ``compact`` has one, their sum with the action before, and so a third of the work.
        discrete: Whether an action is one of ``output_size`` choices.
        condition_on_return: Whether the policy is told the return; without it, this is behaviour cloning.
        return_scale: What returns are divided by.
        max_timestep: Steps with a learned embedding of their own, later ones share the last; 0 leaves it out.
        options: Of ``Task``.

    Raises:
        ValueError: A size is out of range, or mixer or layout are unknown.
    """

    observation_mean: Tensor
    observation_std: Tensor
    encoder: StepEncoder

    def __init__(
        self,
        input_size: int,
        output_size: int,
        layout: Literal["decision_transformer", "compact"] = "decision_transformer",
        discrete: bool = False,
        condition_on_return: bool = True,
        return_scale: float = 1000.0,
        max_timestep: int = 1000,
        **options: Any,
    ) -> None:
        if layout not in ("decision_transformer", "compact"):
            raise ValueError(f"layout must be decision_transformer or compact, got {layout}")
        if return_scale <= 0 or max_timestep < 0:
            raise ValueError(
                "return_scale must be above 0 and max_timestep at least 0, "
                f"got return_scale {return_scale}, max_timestep {max_timestep}"
            )
        # Before anything else, because the encoder is made of them.
        self.layout = layout
        self.discrete = discrete
        self.condition_on_return = condition_on_return
        self.return_scale = return_scale
        self.max_timestep = max_timestep
        super().__init__(input_size, output_size, **options)
        self.tokens_per_step = self.encoder.tokens_per_step
        self.environment: dict[str, Any] = {}
        self.register_buffer("observation_mean", torch.zeros(input_size))
        self.register_buffer("observation_std", torch.ones(input_size))

    def make_encoder(self, dim: int) -> StepEncoder:
        """Tokens of a step, ``dim`` wide."""
        return StepEncoder(
            self.input_size,
            self.output_size,
            dim,
            compact=self.layout == "compact",
            discrete=self.discrete,
            returns=self.condition_on_return,
            max_timestep=self.max_timestep,
        )

    def make_head(self, dim: int) -> nn.Module:
        """An action, or the logits of a discrete one, from ``dim`` features."""
        linear = nn.Linear(dim, self.output_size)
        return linear if self.discrete else nn.Sequential(linear, nn.Tanh())

    def forward(  # type: ignore[override]  # whole trajectories, no state
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        reset: Tensor | None = None,
    ) -> Tensor:
        """Actions, or the logits of discrete ones, for every step: (batch, steps, output_size).

        The action of a step is told from what the batch holds up to its observation.
        """
        x, returns = self.normalized(observations), returns_to_go / self.return_scale
        tokens = self.dropout(self.encoder(x, actions, returns, timesteps, reset))
        count = tokens.shape[2]
        starts = None if reset is None else F.pad(reset.unsqueeze(2), (0, count - 1)).flatten(1)
        hidden, _ = self.backbone(tokens.flatten(1, 2), None, starts)
        outputs: Tensor = self.head(hidden[:, self.encoder.read :: count])
        return outputs

    def step(  # type: ignore[override]
        self,
        observation: Tensor,
        previous_action: Tensor | None,
        return_to_go: Tensor,
        timestep: Tensor,
        state: State,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The action of one step, at constant cost: what ``forward`` gives for the whole episode so far.

        Args:
            observation: (batch, input_size), as it is.
            previous_action: What the last call returned; None at the first step.
            return_to_go: The return still wanted, (batch,): that of the last call less the reward since.
            timestep: int64 (batch,), 0 at the first step of an episode.
            state: That of ``initial_state``, then what the last call returned.
            reset: Bool (batch,), True in the rows where another episode starts, if any.

        Returns:
            The action, (batch, output_size), or int64 (batch,) if they are discrete, and the state.
        """
        outputs, state = self.step_outputs(observation, previous_action, return_to_go, timestep, state, reset)
        return self.decide(outputs), state

    def step_outputs(
        self,
        observation: Tensor,
        previous_action: Tensor | None,
        return_to_go: Tensor,
        timestep: Tensor,
        state: State,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """``step``, with the outputs of the head in place of the action."""
        x, returns = self.normalized(observation), return_to_go / self.return_scale
        before, tokens = self.encoder.step(x, previous_action, returns, timestep, reset)
        for token in before:  # the action before, which an episode that starts now forgets
            _, state = self.backbone.step(self.dropout(token), state)
        for place, token in enumerate(tokens):
            if reset is None or place:
                hidden, state = self.backbone.step(self.dropout(token), state)
            else:
                hidden, state = self.backbone(self.dropout(token).unsqueeze(1), state, reset.unsqueeze(1))
                hidden = hidden.squeeze(1)
        return self.head(hidden), state

    def act_window(self, observations: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor) -> Tensor:
        """The action of the last of a window of steps, all of which are computed again.

        Args:
            observations: (batch, steps, input_size), as they are.
            actions: Those of the window, the last one arbitrary.
            returns_to_go: (batch, steps).
            timesteps: int64 (batch, steps).

        Returns:
            As ``step``.
        """
        return self.decide(self(observations, actions, returns_to_go, timesteps)[:, -1])

    def decide(self, outputs: Tensor) -> Tensor:
        """The action that the outputs of the head stand for; the likeliest if they are discrete."""
        return outputs.argmax(-1) if self.discrete else outputs

    def normalized(self, observations: Tensor) -> Tensor:
        """Observations with the mean 0 and the deviation 1 of the training data."""
        return (observations - self.observation_mean) / self.observation_std

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error of (n, output_size) actions, or nats per action of logits and (n,) choices."""
        if self.discrete:
            return F.cross_entropy(outputs.float(), actions)
        return F.mse_loss(outputs.float(), actions)

    def batch_loss(self, batch: Any) -> Tensor:
        """Loss of a batch over its real steps."""
        return self.loss(self._outputs(batch)[batch.mask], batch.actions[batch.mask])

    def setup(self, stage: str) -> None:
        """Take the mean and deviation of the observations from the data module; ``init_from`` overrules them."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(data, "observation_mean"):
            if data.discrete != self.discrete:
                kinds = ("continuous", "discrete")
                raise ValueError(
                    f"the actions of the data are {kinds[data.discrete]}: give --model.discrete {data.discrete}".lower()
                )
            self.observation_mean.copy_(torch.as_tensor(data.observation_mean))
            self.observation_std.copy_(torch.as_tensor(data.observation_std))
            self.environment = {"env_id": data.env_id, "max_return": float(data.max_return), "window": data.length}
        super().setup(stage)
        self.mean_loss = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the mean."""
        self.mean_loss.update(self.batch_loss(batch), weight=batch.mask.sum())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the mean."""
        self.mean_loss.update(self.batch_loss(batch), weight=batch.mask.sum())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The action of every step."""
        return self.decide(self._outputs(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the mean of the validation part."""
        self._log_mean("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean of the test part."""
        self._log_mean("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the environment of the data, the best return in them and the steps of a row besides."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["environment"] = self.environment

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        self.environment = checkpoint.get("environment", {})

    def _outputs(self, batch: Any) -> Tensor:
        reset = batch.reset if batch.reset[:, 1:].any() else None  # the first step of a row starts from nothing anyhow
        outputs: Tensor = self(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps, reset)
        return outputs

    def _log_mean(self, part: str) -> None:
        loss = self.mean_loss.compute()
        self.mean_loss.reset()
        self.log(f"{part}/loss", loss, prog_bar=True, sync_dist=True)  # the metric is in step already; Lightning asks
