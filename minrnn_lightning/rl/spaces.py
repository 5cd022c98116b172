"""Spaces of environments as a policy sees them: vectors of observations, and discrete or bounded actions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minrnn_lightning.errors import InputError
from minrnn_lightning.rl.environments import Environment, make

if TYPE_CHECKING:
    from minrnn_lightning.tasks import PPOTask

NEEDED = (
    "a policy needs observations that can be flattened to a vector of numbers, and actions that are Discrete, "
    "MultiDiscrete in one dimension, or a Box with finite bounds"
)


@dataclass(frozen=True)
class PolicySpaces:
    """Sizes of observations and actions.

    Args:
        observation_size: Components of an observation.
        actions: As the argument of ``PPOTask``: discrete, continuous, or the numbers of actions to choose from.
        output_size: Number of actions, the sum over all choices, or components of an action.
        low: Lower bounds of continuous actions, float32 (output_size,).
        high: Upper bounds.
    """

    observation_size: int
    actions: str | list[int]
    output_size: int
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def make_flat(env_id: str, **options: Any) -> Environment:
    """A Gymnasium environment whose observations are vectors: one-hot where they are discrete, and concatenated.

    Raises:
        InputError: The environment is unknown, or its observations have no fixed number of components.
    """
    env = make(env_id, **options)
    from gymnasium.spaces import Box
    from gymnasium.wrappers import FlattenObservation

    space = env.observation_space
    if isinstance(space, Box) and len(space.shape) == 1:
        return env
    try:
        return FlattenObservation(env)
    except (NotImplementedError, ValueError, TypeError) as error:
        env.close()
        raise InputError(f"{env_id} has the observations {_line(space)}; {NEEDED}") from error


def policy_spaces(env: Environment, env_id: str) -> PolicySpaces:
    """The sizes of an environment.

    Args:
        env: The environment, from ``make_flat``.
        env_id: Its name.

    Raises:
        InputError: A policy cannot use its spaces.
    """
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise InputError(f"{env_id} has the observations {_line(observations)}; {NEEDED}")
    size = observations.shape[0]
    if isinstance(actions, Discrete):
        return PolicySpaces(size, "discrete", int(actions.n))
    if isinstance(actions, MultiDiscrete) and actions.nvec.ndim == 1:
        return PolicySpaces(size, actions.nvec.tolist(), int(actions.nvec.sum()))
    if isinstance(actions, Box) and np.isfinite(actions.low).all() and np.isfinite(actions.high).all():
        bounds = (end.astype(np.float32).ravel() for end in (actions.low, actions.high))
        return PolicySpaces(size, "continuous", math.prod(actions.shape), *bounds)
    raise InputError(f"{env_id} has the actions {_line(actions)}; {NEEDED}")


def _line(space: Any) -> str:
    """A space as text in one line; arrays of bounds have several."""
    return " ".join(str(space).split())


def check_policy_spaces(task: PPOTask, env: Environment, env_id: str) -> None:
    """Check the sizes of an environment against the policy's.

    Raises:
        InputError: They differ, or a policy cannot use its spaces.
    """
    spaces = policy_spaces(env, env_id)
    if (spaces.observation_size, spaces.actions, spaces.output_size) != (
        task.input_size,
        task.actions,
        task.output_size,
    ):
        raise InputError(
            f"{env_id} has {spaces.observation_size} numbers in an observation and {spaces.output_size} of "
            f"{spaces.actions} actions, the policy {task.input_size} and {task.output_size} of {task.actions} actions: "
            "use the environment that it was trained for"
        )


def to_action_space(actions: np.ndarray, space: Any) -> np.ndarray:
    """A batch of actions as environments take them: counted from the start of the space, or clipped to its bounds.

    Args:
        actions: int64 (batch,) or (batch, choices), counted from 0, or float (batch, action_size).
        space: Action space of one environment.
    """
    if np.issubdtype(actions.dtype, np.integer):
        return np.asarray(actions + space.start).reshape(-1, *space.shape)
    return np.asarray(actions.reshape(-1, *space.shape).clip(space.low, space.high))
