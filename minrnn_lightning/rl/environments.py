"""Gymnasium environments for policies: made, checked against the sizes of the policy, and stepped."""

from __future__ import annotations

import math
import os
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from minrnn_lightning.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from minrnn_lightning.tasks import PolicyTask

Environment = Any  # gymnasium.Env, which need not be installed

ROUNDING = 1e-3  # how far bounds of actions may differ, as a share of half the way between them


def make(env_id: str, **options: Any) -> Environment:
    """A Gymnasium environment.

    Raises:
        InputError: Gymnasium or what the environment needs is missing, or there is none of that name.
    """
    from minrnn_lightning.data.offline_rl.episodes import rl_module

    gymnasium = rl_module("gymnasium")
    _prepare_mujoco()
    try:
        return gymnasium.make(env_id, **options)
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).replace("\n", " ").rstrip(".")
        raise InputError(
            f"Gymnasium cannot make the environment {env_id!r} ({reason}): give one like Hopper-v5"
        ) from error


def environment_of(task: PolicyTask, given: str | None = None) -> str | None:
    """Name of the environment to act in: the one that the user gives, else that of the data the policy learnt from.

    Args:
        task: The policy.
        given: What the user asks for; a name like ``module:Name-v0`` makes Gymnasium import the module.

    Returns:
        The name; None where nobody knows it.

    Raises:
        InputError: The user gives none, and that of the checkpoint or data set would import a module: whoever wrote
            the file would decide which code runs here.
    """
    known = task.environment.get("env_id")
    if given or known is None:
        return given or None
    if not isinstance(known, str) or ":" in known:
        raise InputError(
            f"the environment {known!r}, which the checkpoint or its data set names, would import a module: if you "
            "trust that module, give the name yourself, as --env or env_id"
        )
    return known


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
    """Refuse an environment of other sizes than the policy's, and warn about other bounds of its actions."""
    from gymnasium import spaces

    observation_space, action_space = env.observation_space, env.action_space
    discrete = isinstance(action_space, spaces.Discrete)
    is_vector = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
    if not is_vector or not (discrete or isinstance(action_space, spaces.Box)):
        raise InputError(
            f"{env_id} has the observations {observation_space} and the actions {action_space}; a policy needs "
            "observations that are vectors, and actions that are vectors or discrete"
        )
    observation_size = observation_space.shape[0]
    action_size = int(action_space.n) if discrete else math.prod(action_space.shape or ())
    if (observation_size, action_size, discrete) != (task.input_size, task.output_size, task.discrete):
        unit = {True: "discrete actions", False: "numbers in an action"}
        raise InputError(
            f"{env_id} has {observation_size} numbers in an observation and {action_size} {unit[discrete]}, the policy "
            f"{task.input_size} and {task.output_size} {unit[task.discrete]}: "
            "use the environment that it was trained for"
        )
    if not discrete:
        _compare_bounds(task, action_space, env_id)


def _compare_bounds(task: PolicyTask, space: Any, env_id: str) -> None:
    """Say where an environment takes other actions than a policy gives; bounds that are not finite say nothing."""
    import numpy as np

    middle, scale = (each.cpu().float().numpy() for each in (task.action_middle, task.action_scale))
    ours, theirs = np.stack([middle - scale, middle + scale]), np.stack([space.low.ravel(), space.high.ravel()])
    with np.errstate(invalid="ignore"):
        others = (np.isfinite(theirs) & (abs(theirs - ours) > ROUNDING * scale)).any(axis=0)
    if others.any():
        worst = int(others.argmax())
        low, high, least, greatest = *theirs[:, worst], *ours[:, worst]
        warnings.warn(
            f"In component {worst} the actions of {env_id} go from {low:.4g} to {high:.4g}, those of this policy from "
            f"{least:.4g} to {greatest:.4g}: it learnt from other actions, or from data that do not tell their bounds; "
            "what is too much for the environment is clipped.",
            stacklevel=2,
        )


def step_env(env: Environment, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Take an action: the next observation, the reward, and whether that was the last step."""
    space = env.action_space
    if action.ndim:
        allowed = action.reshape(space.shape).clip(space.low, space.high)
        observation, reward, terminated, truncated, _ = env.step(allowed)
    else:
        observation, reward, terminated, truncated, _ = env.step(int(action) + int(space.start))
    return observation, float(reward), terminated or truncated


take = step_env  # the name that commands/benchmark/policy.py still uses
