"""``PolicyModel``: predict actions from observations, previous actions and returns-to-go."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.state import State
from minrnn_lightning.tasks.action_bounds import ActionBounds, exact
from minrnn_lightning.tasks.step_encoder import StepEncoder
from minrnn_lightning.tasks.task import Task

BOUNDS = ("action_low", "action_high")  # names in a data module and in the environment of a checkpoint


class PolicyModel(Task):
    """Predicts actions from observations, previous actions and returns-to-go: in parallel, or one step at a time.

    Observations are normalised with a mean and standard deviation, actions with their bounds, which become −1 and 1;
    before they are set, observations are unchanged and the bounds are −1 and 1. Predicted actions are in the units of
    the environment, within the bounds. Source: Decision Transformer, Chen et al. 2021,
    https://arxiv.org/abs/2106.01345.

    Args:
        input_size: Components of an observation; the data module sets it on the command line.
        output_size: Components of an action, or number of discrete actions; the data module sets it on the command
            line.
        layout: ``decision_transformer`` has three tokens a step, return, observation and action, and predicts the
            action at the observation; ``compact`` has one, the sum of return, observation and previous action, which
            takes a third of the computation.
        discrete: Whether an action is one of ``output_size`` choices.
        condition_on_return: Whether the return-to-go is an input; without it, this is behaviour cloning.
        return_scale: Divisor of the returns.
        max_timestep: Number of learned timestep embeddings; later steps share the last. 0 for none.
        options: Of ``Task``.

    Raises:
        InputError: A size is out of range, or the mixer or layout is unknown.
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
        if not 0 < return_scale < math.inf or max_timestep < 0:
            raise InputError(
                "return_scale must be above 0 and finite, and max_timestep at least 0, "
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
        # A checkpoint has them in its environment; in older ones, which have none, they are −1 and 1.
        self.action_bounds = ActionBounds(output_size)

    def bound_actions(self, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor) -> None:
        """Set the bounds of the actions, as a data module does before training; the checkpoint contains them.

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
        """Midpoint of the bounds of the actions, (output_size,)."""
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
        return self.forward_from(None, observations, actions, returns_to_go, timesteps, reset)[0]

    def forward_from(
        self,
        state: State,
        observations: Tensor,
        actions: Tensor,
        returns_to_go: Tensor,
        timesteps: Tensor,
        reset: Tensor | None = None,
        delta_t: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """``forward`` from the state after earlier steps of the same rows.

        Args:
            state: What the call for the steps before returned: the state of the backbone, and the last actions. None
                where there are none.
            observations: As for ``forward``.
            actions: As for ``forward``.
            returns_to_go: As for ``forward``.
            timesteps: As for ``forward``.
            reset: As for ``forward``.
            delta_t: Time since the step before, (batch, steps), with the layout ``compact``; 1 if None.

        Returns:
            Actions or logits, and the state after the last step.

        Raises:
            InputError: ``delta_t`` is given, and a step has several tokens or a mixer takes none.
        """
        if delta_t is not None and self.tokens_per_step > 1:
            raise InputError("delta_t needs the layout compact, in which a step is one token")
        before, previous = (None, None) if state is None else state
        x, returns = self.normalized(observations), returns_to_go / self.return_scale
        tokens = self.dropout(self.encoder(x, self.normalized_actions(actions), returns, timesteps, reset, previous))
        count = tokens.shape[2]
        starts = None if reset is None else F.pad(reset.unsqueeze(2), (0, count - 1)).flatten(1)
        hidden, after = self.backbone(tokens.flatten(1, 2), before, starts, delta_t=delta_t)
        outputs = self._in_bounds(self.head(hidden[:, self.encoder.output_position :: count]))
        return outputs, (after, self.normalized_actions(actions[:, -1]))

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
            return_to_go: The target return from this step on, (batch,): that of the last call minus the reward since.
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
        """``step``, which returns actions within the bounds or logits instead of the chosen action."""
        x, returns = self.normalized(observation), return_to_go / self.return_scale
        previous = None if previous_action is None else self.normalized_actions(previous_action)
        before, tokens = self.encoder.step(x, previous, returns, timestep, reset)
        for token in before:  # the previous action, of which a reset at this step leaves nothing
            _, state = self.backbone.step(self.dropout(token), state)
        for position, token in enumerate(tokens):
            hidden, state = self.backbone.step(self.dropout(token), state, None if position else reset)
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
