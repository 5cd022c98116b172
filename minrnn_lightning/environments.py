"""Gymnasium environments for policies: made, checked against the sizes of the policy, and stepped."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from minrnn_lightning.tasks import PolicyTask

Environment = Any  # gymnasium.Env, which need not be installed


def make(env_id: str, **options: Any) -> Environment:
    """A Gymnasium environment.

    Raises:
        ValueError: Gymnasium or what the environment needs is missing, or there is none of that name.
    """
    from minrnn_lightning.data.episodes import rl_module

    gymnasium = rl_module("gymnasium")
    _prepare_mujoco()
    try:
        return gymnasium.make(env_id, **options)
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).replace("\n", " ").rstrip(".")
        raise ValueError(
            f"Gymnasium cannot make the environment {env_id!r} ({reason}): give one like Hopper-v5"
        ) from error


def _prepare_mujoco() -> None:
    """Without a screen, draw without one; keep a warning about Gymnasium's own HalfCheetah to ourselves."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    with suppress(ImportError, AttributeError):  # not installed, or too old to warn
        mujoco = import_module("mujoco")
        mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    if "settotalmass" not in message:
        print(f"MuJoCo: {message}", file=sys.stderr)


def check_spaces(task: PolicyTask, env: Environment, env_id: str) -> None:
    """Refuse an environment of other sizes than the policy's."""
    from gymnasium import spaces

    seen, done = env.observation_space, env.action_space
    discrete = isinstance(done, spaces.Discrete)
    if not (isinstance(seen, spaces.Box) and len(seen.shape) == 1 and (discrete or isinstance(done, spaces.Box))):
        raise ValueError(
            f"{env_id} has the observations {seen} and the actions {done}; a policy needs observations that are a list "
            "of numbers, and actions that are one too or a choice"
        )
    size = int(done.n) if discrete else math.prod(done.shape or ())
    if (seen.shape[0], size, discrete) != (task.input_size, task.output_size, task.discrete):
        kind = {True: "discrete actions", False: "numbers in an action"}
        raise ValueError(
            f"{env_id} has {seen.shape[0]} numbers in an observation and {size} {kind[discrete]}, the policy "
            f"{task.input_size} and {task.output_size} {kind[task.discrete]}: "
            "use the environment that it was trained for"
        )


def take(env: Environment, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Take an action: the next observation, the reward, and whether that was the last step."""
    space = env.action_space
    if action.ndim:
        observation, reward, terminated, truncated, _ = env.step(action.clip(space.low, space.high))
    else:
        observation, reward, terminated, truncated, _ = env.step(int(action) + int(space.start))
    return observation, float(reward), terminated or truncated
