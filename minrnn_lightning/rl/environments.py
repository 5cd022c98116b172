"""Gymnasium environments for policies: creating them, checking them against the policy, and stepping."""

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

    from minrnn_lightning.tasks import PolicyTask, PPOTask

Environment = Any  # gymnasium.Env, which need not be installed

ROUNDING = 1e-3  # how far action bounds may differ, as a fraction of half their distance


def make(env_id: str, **options: Any) -> Environment:
    """A Gymnasium environment.

    Raises:
        InputError: Gymnasium or a package of the environment is missing, the environment is unknown, or it cannot be
            made with these arguments.
    """
    from minrnn_lightning.data.extra import rl_module

    for name, value in options.items():
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"the argument {name} of {env_id} must be a number, got nan")

    gymnasium = rl_module("gymnasium")
    import_module("minrnn_lightning.rl.memory_envs")  # which registers them
    _prepare_mujoco()
    try:
        return gymnasium.make(env_id, **options)
    except InputError:
        raise
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).replace("\n", " ").rstrip(".")
        raise InputError(
            f"Gymnasium cannot make the environment {env_id!r} ({reason}): give one like Hopper-v5"
        ) from error
    except Exception as error:  # whatever the environment raises about its arguments
        if not options:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"Gymnasium cannot make the environment {env_id!r} with the arguments {', '.join(options)}: {reason}"
        ) from error


def environment_of(task: PolicyTask | PPOTask, given: str | None = None) -> str | None:
    """Name of the environment to act in: the given one, else that of the training data.

    Args:
        task: The policy.
        given: The name that the user gives, if any; one like ``module:Name-v0`` makes Gymnasium import the module.

    Returns:
        The name; None if it is unknown.

    Raises:
        InputError: No name is given, and that of the checkpoint or data set would import a module: the author of
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


def arguments_of(task: PolicyTask | PPOTask, env_id: str) -> dict[str, Any]:
    """Arguments of the environment: those of the training data if it is theirs, else none."""
    known = task.environment
    return known.get("env_args", {}) if env_id == known.get("env_id") else {}


def _prepare_mujoco() -> None:
    """Render without a display where there is none, and suppress a warning about Gymnasium's own HalfCheetah."""
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    with suppress(ImportError, AttributeError):  # not installed, or too old to warn
        mujoco = import_module("mujoco")
        mujoco.set_mju_user_warning(_warn)


def _warn(message: str) -> None:
    if "settotalmass" not in message:
        print(f"MuJoCo: {message}", file=sys.stderr)


def check_spaces(task: PolicyTask, env: Environment, env_id: str) -> None:
    """Check the sizes of an environment against the policy's, and warn where its action bounds differ.

    Raises:
        InputError: The sizes differ, or the spaces are neither vectors nor discrete.
    """
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
    """Warn where the action bounds of an environment differ from the policy's; infinite bounds are not compared."""
    import numpy as np

    middle, scale = (tensor.cpu().float().numpy() for tensor in (task.action_middle, task.action_scale))
    policy_bounds = np.stack([middle - scale, middle + scale])
    env_bounds = np.stack([space.low.ravel(), space.high.ravel()])
    with np.errstate(invalid="ignore"):
        differ = (np.isfinite(env_bounds) & (abs(env_bounds - policy_bounds) > ROUNDING * scale)).any(axis=0)
    if differ.any():
        first = int(differ.argmax())
        low, high, policy_low, policy_high = *env_bounds[:, first], *policy_bounds[:, first]
        warnings.warn(
            f"In component {first} the actions of {env_id} go from {low:.4g} to {high:.4g}, those of this policy from "
            f"{policy_low:.4g} to {policy_high:.4g}: it was trained on other actions, or on data that do not give "
            "their bounds; actions outside the bounds of the environment are clipped.",
            stacklevel=2,
        )


def step_env(env: Environment, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Step the environment.

    Args:
        env: The environment.
        action: float (action_size,), clipped to the action space; or an integer () or several, counted from 0.

    Returns:
        The next observation, the reward, and whether the episode has ended.
    """
    space = env.action_space
    taken: Any
    if action.dtype.kind != "i":
        taken = action.reshape(space.shape).clip(space.low, space.high)
    elif space.shape:  # also of a single choice, which policies have as an integer ()
        taken = (action + space.start).reshape(space.shape)
    else:
        taken = int(action) + int(space.start)
    observation, reward, terminated, truncated, _ = env.step(taken)
    return observation, float(reward), terminated or truncated
