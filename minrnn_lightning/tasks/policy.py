"""``PolicyTask``: predict actions from observations and returns-to-go; trained on recorded trajectories."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from minrnn_lightning.batches import data_facts
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.mixers.base import State
from minrnn_lightning.tasks.action_bounds import ActionBounds, exact
from minrnn_lightning.tasks.metrics import Mean
from minrnn_lightning.tasks.step_encoder import StepEncoder
from minrnn_lightning.tasks.task import Task

BOUNDS = ("action_low", "action_high")  # as a data module and the environment in a checkpoint call them


class PolicyTask(Task):
    """Imitate the actions of trajectories, given the return that followed them; a high return is then asked for.

    A batch has the attributes of ``TrajectoryBatch``: ``observations`` float32 (batch, steps, input_size) and
    ``actions`` float32 (batch, steps, output_size), both in the units of the environment, or ``actions`` int64
    (batch, steps) if they are discrete; ``returns_to_go`` float32 (batch, steps), the sum of the rewards from a step
    on; ``timesteps`` int64 (batch, steps), counted from the start of the episode; ``mask`` bool (batch, steps), True at
    real steps, which come before the padding; ``reset`` bool (batch, steps), True at the first step of an episode.

    Observations are normalised with the mean and standard deviation of the data module, actions with its bounds
    ``action_low`` and ``action_high``, which become −1 and 1; the checkpoint keeps all of them. Without such a data
    module the bounds are −1 and 1, unless ``bound_actions`` was called, and a warning tells of actions beyond them.
    Predicted actions are in the units of the environment, within the bounds.

    Logged: ``train/loss``, the mean over the real steps of each batch; ``val/loss`` and ``test/loss``, the mean over
    all real steps, however they are divided into batches: the squared error of an action's normalised components, or
    nats per discrete action. A batch without a real step counts for nothing; one whose loss is NaN makes the mean over
    all batches NaN. Source: Decision Transformer, Chen et al. 2021, https://arxiv.org/abs/2106.01345.

    Args:
        input_size: Components of an observation; the data module sets it on the command line.
        output_size: Components of an action, or number of discrete actions; the data module sets it on the command
            line.
        layout: ``decision_transformer`` has three tokens a step, return, observation and action, and predicts the
            action at the observation; ``compact`` has one, the sum of return, observation and previous action, which
            takes a third of the work.
        discrete: Whether an action is one of ``output_size`` choices.
        condition_on_return: Whether the return-to-go is an input; without it, this is behaviour cloning.
        return_scale: What returns are divided by.
        max_timestep: Number of learned timestep embeddings; later steps share the last. 0 leaves them out.
        options: Of ``Task``.

    Raises:
        InputError: A size is out of range, or mixer or layout are unknown.
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
            raise InputError(f"layout must be decision_transformer or compact, got {layout}")
        if return_scale <= 0 or max_timestep < 0:
            raise InputError(
                "return_scale must be above 0 and max_timestep at least 0, "
                f"got return_scale {return_scale}, max_timestep {max_timestep}"
            )
        super().__init__(input_size, output_size, **options)
        self.layout = layout
        self.discrete = discrete
        self.condition_on_return = condition_on_return
        self.return_scale = return_scale
        self.max_timestep = max_timestep
        encoder = StepEncoder(
            input_size,
            output_size,
            self.dim,
            compact=layout == "compact",
            discrete=discrete,
            returns=condition_on_return,
            max_timestep=max_timestep,
        )
        self.encoder = encoder
        self.backbone = self.make_backbone()
        linear = nn.Linear(self.dim, output_size)
        self.head = linear if discrete else nn.Sequential(linear, nn.Tanh())
        self.tokens_per_step = encoder.tokens_per_step
        self.environment: dict[str, Any] = {}
        self.register_buffer("observation_mean", torch.zeros(input_size))
        self.register_buffer("observation_std", torch.ones(input_size))
        # A checkpoint keeps them in the environment; older ones have none, and there they are −1 and 1.
        self.action_bounds = ActionBounds(output_size)

    def bound_actions(self, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor) -> None:
        """Set the bounds of the actions, as a data module does before training; they go into the checkpoint.

        Args:
            low: Lower bounds, (output_size,).
            high: Upper bounds, (output_size,).

        Raises:
            InputError: Actions are discrete, or the bounds are of another size, not finite or not in order.
        """
        if self.discrete:
            raise InputError("discrete actions have no bounds: bound_actions is for discrete=False")
        self.action_bounds.set(low, high)
        self.environment |= {name: exact(end).tolist() for name, end in zip(BOUNDS, (low, high), strict=True)}

    @property
    def action_middle(self) -> Tensor:
        """Middle between the bounds of the actions, (output_size,)."""
        return self.action_bounds.middle

    @property
    def action_scale(self) -> Tensor:
        """Half the distance between the bounds of the actions, (output_size,)."""
        return self.action_bounds.scale

    def forward(
        self,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        reset: Tensor | None = None,
    ) -> Tensor:
        """Predict the actions of every step: within the bounds, or logits of discrete ones.

        Each action is predicted from the tokens up to and including its observation.

        Args:
            observations: (batch, steps, input_size), in the units of the environment.
            actions: (batch, steps, output_size), in the units of the environment, or int64 (batch, steps).
            returns_to_go: (batch, steps).
            timesteps: int64 (batch, steps).
            reset: Bool (batch, steps), True at the first step of an episode.

        Returns:
            Actions or logits, (batch, steps, output_size).
        """
        x, returns = self.normalized(observations), returns_to_go / self.return_scale
        tokens = self.dropout(self.encoder(x, self.normalized_actions(actions), returns, timesteps, reset))
        count = tokens.shape[2]
        starts = None if reset is None else F.pad(reset.unsqueeze(2), (0, count - 1)).flatten(1)
        hidden, _ = self.backbone(tokens.flatten(1, 2), None, starts)
        return self._in_bounds(self.head(hidden[:, self.encoder.output_position :: count]))

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step of an episode."""
        return self.backbone.initial_state(batch_size)

    def step(
        self,
        observation: Tensor,
        previous_action: Tensor | None,
        return_to_go: Tensor,
        timestep: Tensor,
        state: State,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Predict the action of one step at constant cost, equal to ``forward`` over the episode up to here.

        Args:
            observation: (batch, input_size), in the units of the environment.
            previous_action: What the last call returned; None at the first step.
            return_to_go: The return wanted from here on, (batch,): that of the last call minus the reward since.
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
        """``step``, which returns actions within the bounds or logits in place of the chosen action."""
        x, returns = self.normalized(observation), return_to_go / self.return_scale
        previous = None if previous_action is None else self.normalized_actions(previous_action)
        before, tokens = self.encoder.step(x, previous, returns, timestep, reset)
        for token in before:  # the previous action, which an episode that starts now forgets
            _, state = self.backbone.step(self.dropout(token), state)
        for position, token in enumerate(tokens):
            if reset is None or position:
                hidden, state = self.backbone.step(self.dropout(token), state)
            else:
                hidden, state = self.backbone(self.dropout(token).unsqueeze(1), state, reset.unsqueeze(1))
                hidden = hidden.squeeze(1)
        return self._in_bounds(self.head(hidden)), state

    def act_window(self, observations: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the action of the last step of a window, computing all its steps again.

        Args:
            observations: (batch, steps, input_size), in the units of the environment.
            actions: Those of the window, the last one arbitrary.
            returns_to_go: (batch, steps).
            timesteps: int64 (batch, steps).

        Returns:
            As ``step``.
        """
        return self.decide(self(observations, actions, returns_to_go, timesteps)[:, -1])

    def decide(self, outputs: Tensor) -> Tensor:
        """Turn actions or logits (..., output_size) into actions; the most likely one if they are discrete."""
        return outputs.argmax(-1) if self.discrete else outputs

    def normalized(self, observations: Tensor) -> Tensor:
        """Observations with mean 0 and standard deviation 1 over the training data."""
        return (observations - self.observation_mean) / self.observation_std

    def normalized_actions(self, actions: Tensor) -> Tensor:
        """Actions scaled from their bounds to −1 and 1; discrete ones unchanged."""
        return actions if self.discrete else self.action_bounds.normalize(actions)

    def _in_bounds(self, outputs: Tensor) -> Tensor:
        """Outputs of the head in the units of the environment."""
        return outputs if self.discrete else self.action_bounds.denormalize(outputs)

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

        ``init_from`` overrules mean and standard deviation of the observations; the bounds stay those of the data, so
        that the policy can take every action in them.
        """
        data = data_facts(self._trainer)
        if stage == "fit" and data.observation_mean is not None:
            if data.discrete != self.discrete:
                name, value = ("discrete", "true") if data.discrete else ("continuous", "false")
                raise InputError(f"the actions of the data are {name}: give --model.discrete {value}")
            self.observation_mean.copy_(torch.as_tensor(data.observation_mean))
            self.observation_std.copy_(torch.as_tensor(data.observation_std))
            assert data.max_return is not None, "data that have observation_mean have these too"
            assert data.length is not None
            self.environment |= {
                "env_id": data.env_id,
                "max_return": float(data.max_return),
                "window": int(data.length),
            }
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
        """Log the mean, and warn of actions beyond the bounds."""
        self.action_bounds.warn()
        super().log_metrics(part)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check once an epoch whether actions lie beyond the bounds, as that waits for the device."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if batch_idx == 0:
            self.action_bounds.warn()

    def on_train_end(self) -> None:
        """Check it for the last epoch."""
        super().on_train_end()
        self.action_bounds.warn()

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The actions of every step, as ``step`` returns them."""
        return self.decide(self._outputs(batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the environment of the data, the bounds, the highest return in the data and the steps of a row."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["environment"] = self.environment

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        self.environment = dict(checkpoint.get("environment", {}))
        if BOUNDS[0] in self.environment:
            self.bound_actions(*(self.environment[name] for name in BOUNDS))
        else:
            self.action_bounds.reset()

    def _outputs(self, batch: Any) -> Tensor:
        reset = batch.reset if batch.reset[:, 1:].any() else None  # a row starts from the initial state anyhow
        outputs: Tensor = self(batch.observations, batch.actions, batch.returns_to_go, batch.timesteps, reset)
        return outputs

    def _bounds_of_data(self) -> bool:
        """Whether the bounds are those of the data module, which has checked its actions itself."""
        data = data_facts(self._trainer)
        bounds = dict(zip(BOUNDS, (data.action_low, data.action_high), strict=True))
        return data.action_low is not None and all(
            exact(bound).tolist() == self.environment.get(name) for name, bound in bounds.items()
        )
