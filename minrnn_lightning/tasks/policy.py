"""``PolicyTask``: actions from observations and the return still wanted, learnt from trajectories that others left."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.mixers.base import State
from minrnn_lightning.tasks.metrics import Mean
from minrnn_lightning.tasks.step_encoder import StepEncoder
from minrnn_lightning.tasks.task import Task

BOUNDS = ("action_low", "action_high")  # as a data module and the environment in a checkpoint call them
ROUNDING = 1e-3  # how far actions may lie outside their bounds, as a share of half the way between them


class PolicyTask(Task):
    """Imitate the actions of trajectories, given the return that followed them: ask for a high one, and act.

    A batch has the attributes ``observations`` float32 (batch, steps, input_size), as they are; ``actions`` float32
    (batch, steps, output_size), as they are, or int64 (batch, steps) if they are discrete; ``returns_to_go`` float32
    (batch, steps), the sum of the rewards from a step on; ``timesteps`` int64 (batch, steps), counted from the start of
    the episode; ``mask`` bool (batch, steps), True at real steps, which come first; ``reset`` bool (batch, steps), True
    where an episode starts.

    Observations are normalised with the mean and deviation of the data module, actions with its bounds ``action_low``
    and ``action_high``, so that they go from −1 to 1 inside; the checkpoint keeps all of them. Without such a data
    module the bounds are −1 and 1, unless ``bound_actions`` was called, and actions beyond them are told about. Actions
    that come out are the environment's, within the bounds.

    Logged: ``train/loss``, the mean over the real steps of each batch; ``val/loss`` and ``test/loss``, the mean over
    all real steps, however they are divided into batches: the squared error of an action's normalised components, or
    nats per discrete action. A batch without a real step counts for nothing; one whose loss is not a number makes the
    whole mean such. Source: Decision Transformer, Chen et al. 2021, https://arxiv.org/abs/2106.01345.

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
        InputError: A size is out of range, or mixer or layout are unknown.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_middle: Tensor
    action_scale: Tensor
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
            raise InputError(f"layout must be decision_transformer or compact, got {layout}")
        if return_scale <= 0 or max_timestep < 0:
            raise InputError(
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
        # In the checkpoint these are in the environment, because older checkpoints have none; those mean −1 and 1.
        self.register_buffer("action_middle", torch.zeros(output_size), persistent=False)
        self.register_buffer("action_scale", torch.ones(output_size), persistent=False)
        self._reach: Tensor | None = None  # how far the farthest action seen lies from the middle, normalised
        self._told_reach = False

    def bound_actions(self, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor) -> None:
        """Say between which bounds actions lie, as a data module does before training; they go into the checkpoint.

        Args:
            low: The least action, (output_size,).
            high: The greatest, (output_size,).

        Raises:
            InputError: Actions are discrete, or the bounds of another size, not finite or not one below the other.
        """
        ends = [_exact(end) for end in (low, high)]
        middle, scale = ends[0] / 2 + ends[1] / 2, ends[1] / 2 - ends[0] / 2
        if self.discrete:
            raise InputError("discrete actions have no bounds: bound_actions is for discrete=False")
        if any(end.shape != (self.output_size,) for end in ends) or not (scale > 0).all() & scale.isfinite().all():
            raise InputError(
                f"low and high must be {self.output_size} finite numbers each, low below high, "
                f"got {ends[0].tolist()} and {ends[1].tolist()}"
            )
        self.action_middle.copy_(middle)
        self.action_scale.copy_(scale)
        self.environment |= dict(zip(BOUNDS, (end.tolist() for end in ends), strict=True))

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
        """Actions within the bounds, or the logits of discrete ones, for every step: (batch, steps, output_size).

        The action of a step is told from what the batch holds up to its observation.
        """
        x, returns = self.normalized(observations), returns_to_go / self.return_scale
        tokens = self.dropout(self.encoder(x, self.normalized_actions(actions), returns, timesteps, reset))
        count = tokens.shape[2]
        starts = None if reset is None else F.pad(reset.unsqueeze(2), (0, count - 1)).flatten(1)
        hidden, _ = self.backbone(tokens.flatten(1, 2), None, starts)
        return self._in_bounds(self.head(hidden[:, self.encoder.read :: count]))

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
        done = None if previous_action is None else self.normalized_actions(previous_action)
        before, tokens = self.encoder.step(x, done, returns, timestep, reset)
        for token in before:  # the action before, which an episode that starts now forgets
            _, state = self.backbone.step(self.dropout(token), state)
        for place, token in enumerate(tokens):
            if reset is None or place:
                hidden, state = self.backbone.step(self.dropout(token), state)
            else:
                hidden, state = self.backbone(self.dropout(token).unsqueeze(1), state, reset.unsqueeze(1))
                hidden = hidden.squeeze(1)
        return self._in_bounds(self.head(hidden)), state

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

    def normalized_actions(self, actions: Tensor) -> Tensor:
        """Actions between the bounds as numbers from −1 to 1; discrete ones as they are."""
        return actions if self.discrete else (actions - self.action_middle) / self.action_scale

    def _in_bounds(self, outputs: Tensor) -> Tensor:
        """What the head gives, in the units of the environment."""
        return outputs if self.discrete else outputs * self.action_scale + self.action_middle

    def loss(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error of (n, output_size) actions, half the way between the bounds counting as 1, or nats.

        Nats per action of logits (n, output_size) and choices (n,), where actions are discrete.
        """
        if self.discrete:
            return F.cross_entropy(outputs.float(), actions)
        return F.mse_loss(outputs.float() / self.action_scale, actions / self.action_scale)

    def batch_loss(self, batch: Any) -> Tensor:
        """Loss of a batch over its real steps; 0 if there is none."""
        self._note_reach(batch)
        outputs, actions = self._outputs(batch)[batch.mask], batch.actions[batch.mask]
        return self.loss(outputs, actions) if len(actions) else outputs.float().sum()

    def setup(self, stage: str) -> None:
        """Take what the data module knows of the observations and actions.

        ``init_from`` overrules mean and deviation of the observations; the bounds stay those of the data, so that the
        policy can take every action in them.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and hasattr(data, "observation_mean"):
            if data.discrete != self.discrete:
                kinds = ("continuous", "discrete")
                raise InputError(
                    f"the actions of the data are {kinds[data.discrete]}: give --model.discrete {data.discrete}".lower()
                )
            self.observation_mean.copy_(torch.as_tensor(data.observation_mean))
            self.observation_std.copy_(torch.as_tensor(data.observation_std))
            self.environment |= {
                "env_id": data.env_id,
                "max_return": float(data.max_return),
                "window": int(data.length),
            }
            if getattr(data, "action_low", None) is not None:
                self.bound_actions(data.action_low, data.action_high)
        super().setup(stage)
        self._reach, self._told_reach = None, False
        self.mean_loss = Mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Say once an epoch whether actions lie beyond the bounds, as the answer waits for the device."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if batch_idx == 0:
            self._tell_reach()

    def on_train_end(self) -> None:
        """Say it of the last epoch."""
        super().on_train_end()
        self._tell_reach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the mean."""
        self.mean_loss.update(self.batch_loss(batch), batch.mask.sum())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to the mean."""
        self.mean_loss.update(self.batch_loss(batch), batch.mask.sum())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The action of every step."""
        return self.decide(self._outputs(batch))

    def on_validation_epoch_end(self) -> None:
        """Log the mean of the validation part."""
        self._tell_reach()
        self._log_mean("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean of the test part."""
        self._tell_reach()
        self._log_mean("test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the environment of the data, its bounds, the best return in them and the steps of a row besides."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["environment"] = self.environment

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        self.environment = dict(checkpoint.get("environment", {}))
        if BOUNDS[0] in self.environment:
            self.bound_actions(*(self.environment[name] for name in BOUNDS))
        else:
            self.action_middle.zero_()
            self.action_scale.fill_(1)

    def _outputs(self, batch: Any) -> Tensor:
        reset = batch.reset if batch.reset[:, 1:].any() else None  # the first step of a row starts from nothing anyhow
        outputs: Tensor = self(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps, reset)
        return outputs

    def _note_reach(self, batch: Any) -> None:
        """Note how far the actions of a batch reach; a data module that gave the bounds has looked itself."""
        data: Any = getattr(self._trainer, "datamodule", None)
        given = getattr(data, BOUNDS[0], None) is not None and all(
            _exact(getattr(data, name)).tolist() == self.environment.get(name) for name in BOUNDS
        )
        if not (given or self.discrete):
            far = self.normalized_actions(batch.actions.detach()).abs().amax(-1).masked_fill(~batch.mask, 0).max()
            self._reach = far if self._reach is None else torch.maximum(self._reach, far)

    def _tell_reach(self) -> None:
        """Say once that actions lie beyond the bounds."""
        reach, self._reach = self._reach, None
        if self._told_reach or reach is None or reach <= 1 + ROUNDING:
            return
        self._told_reach = True
        low, high = self.action_middle - self.action_scale, self.action_middle + self.action_scale
        rank_zero_warn(
            f"The data have actions {reach.item():.3g} times as far out as this policy can go, from {low.min():.4g} to "
            f"{high.max():.4g}: tell it their bounds with a data module that knows action_low and action_high, like "
            "TrajectoryDataModule, or with task.bound_actions(low, high) before training."
        )

    def _log_mean(self, part: str) -> None:
        loss = self.mean_loss.compute()
        self.mean_loss.reset()
        self.log(f"{part}/loss", loss, prog_bar=True, sync_dist=True)  # the metric is in step already; Lightning asks


def _exact(numbers: Sequence[float] | Tensor) -> Tensor:
    """Numbers as the checkpoint keeps them: in double precision, on the CPU."""
    return torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
