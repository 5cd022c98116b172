"""Rollouts of a trained policy: with a recurrent state, or by recomputing a window of past steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from minrnn_lightning.checkpoint import read_checkpoint
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import unchanged_modules
from minrnn_lightning.nn.state import select_state
from minrnn_lightning.rl.environments import Environment, check_spaces, make, step_env
from minrnn_lightning.rl.spaces import check_policy_spaces, make_flat
from minrnn_lightning.tasks import PolicyTask, PPOTask
from minrnn_lightning.tasks.load import build_task

Mode = Literal["carry", "window"]
Policy = PolicyTask | PPOTask

FRAMES_PER_SECOND = 30  # of a recording, at most


@dataclass
class RolloutResult:
    """The episodes of one target return.

    Args:
        target: The target return; None for a policy that is not conditioned on one.
        returns: Undiscounted return of each episode.
        lengths: Number of steps of each episode.
        seconds: Duration of all episodes together.
        frames: Images of the first episode at half size, uint8 (height, width, 3), if it was recorded.
        frames_per_second: Frame rate that plays the images in real time.
    """

    target: float | None
    returns: list[float]
    lengths: list[int]
    seconds: float
    frames: list[np.ndarray] = field(default_factory=list, repr=False)
    frames_per_second: float = 0.0


def load_policy(path: str | Path) -> Policy:
    """The trained policy of a checkpoint.

    Raises:
        CheckpointError: The file cannot be read, or holds another task.
    """
    checkpoint, use = read_checkpoint(path), "act in an environment"
    if "critic.weight" in checkpoint["state_dict"]:  # also of a subclass from elsewhere
        return build_task(checkpoint, path, PPOTask, use)
    return build_task(checkpoint, path, PolicyTask, use)


def rollout(
    task: Policy,
    env_id: str,
    episodes: int = 10,
    targets: Sequence[float | None] = (None,),
    *,
    mode: Mode = "carry",
    window: int = 20,
    seed: int = 0,
    num_envs: int = 32,
    record: bool = False,
    env_args: dict[str, Any] | None = None,
) -> list[RolloutResult]:
    """Run complete episodes for every target return.

    Episode i starts from ``seed`` + i, for every target. Each environment of a batch runs one episode and then waits
    for the others, so that nothing depends on how a vectorised environment starts the next one.

    Args:
        task: A trained policy, which takes its most likely actions; put in evaluation mode during the rollout.
        env_id: Name of a Gymnasium environment, such as Hopper-v5.
        episodes: Number of episodes for each target.
        targets: Target returns; the reward of every step is subtracted from the return-to-go. None for a policy that
            is not conditioned on a return.
        mode: ``carry`` takes one step of the model for each step of the environment, keeping its state;
            ``window`` recomputes the last steps.
        window: Number of steps that ``window`` recomputes.
        seed: Seed of the first episode.
        num_envs: Environments that are stepped together, in one batch of the policy.
        record: Keep images of the first episode of the first target.
        env_args: Arguments of the environment.

    Returns:
        A result for each target.

    Raises:
        InputError: An argument is out of range, or the environment is unknown, does not fit the policy, or has no
            images to record.
    """
    for name, value in (("episodes", episodes), ("window", window), ("num_envs", num_envs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if mode not in ("carry", "window"):
        raise InputError(f"mode must be carry or window, got {mode}")
    if task.condition_on_return and (not targets or not all(t is not None and math.isfinite(t) for t in targets)):
        raise InputError("this policy is conditioned on a target return: give a target_return, such as 3600")
    if mode == "window" and isinstance(task, PPOTask):
        raise InputError("mode must be carry for a PPOTask, whose state is carried in training too, got window")
    count = min(num_envs, episodes)
    envs, films = [_make(task, env_id, env_args)], []
    training = task.training
    task.eval()
    try:
        if isinstance(task, PPOTask):
            check_policy_spaces(task, envs[0], env_id)
        else:
            check_spaces(task, envs[0], env_id)
        if record:  # an error after the episodes would lose them
            films.append(_make_drawn(task, env_id, env_args, envs[0].metadata))
        envs += [_make(task, env_id, env_args) for _ in range(count - 1)]
        results = []
        for target in targets:
            result = RolloutResult(target, [], [], 0.0)
            started = time.perf_counter()
            for first in range(0, episodes, count):
                seeds = range(seed + first, seed + min(first + count, episodes))
                policy = _actor(task, len(seeds), mode, window)
                returns, lengths = _run_episodes(policy, envs, seeds, target)
                result.returns += returns
                result.lengths += lengths
            result.seconds = time.perf_counter() - started
            results.append(result)
        for film in films:
            _record(_actor(task, 1, mode, window), film, seed, results[0])
    finally:
        task.train(training)
        for env in [*envs, *films]:
            env.close()
    return results


def _make(task: Policy, env_id: str, env_args: dict[str, Any] | None, **options: Any) -> Environment:
    """The environment as the policy observes it."""
    return (make_flat if isinstance(task, PPOTask) else make)(env_id, **{**(env_args or {}), **options})


P = TypeVar("P", PolicyTask, PPOTask)


class _StateActor(Generic[P]):
    """Acts with the recurrent state of a policy: the cost of a step is constant.

    Args:
        task: The policy, in evaluation mode.
        rows: Number of environments that are stepped together.
    """

    def __init__(self, task: P, rows: int) -> None:
        self.task: P = task
        self.rows = rows
        self.start()

    def start(self) -> None:
        """Start an episode in every row."""
        self.state = self.task.initial_state(self.rows)
        self.last_action: Tensor | None = None

    def keep(self, rows: Tensor) -> None:
        """Keep only some of the rows, bool (rows,)."""
        self.last_action = None if self.last_action is None else self.last_action[rows]
        self.state = select_state(self.state, rows)


class RecurrentActor(_StateActor[PolicyTask]):
    """Acts with the state of a policy that was trained offline."""

    def act(self, observation: Tensor, return_to_go: Tensor, timestep: Tensor) -> Tensor:
        """The action of every row; shapes as in ``PolicyTask.step``."""
        inputs = observation, self.last_action, return_to_go, timestep
        self.last_action, self.state = self.task.step(*inputs, self.state)
        return self.last_action


class OnlineActor(_StateActor[PPOTask]):
    """Acts with the state of a policy that was trained online."""

    def act(self, observation: Tensor, return_to_go: Tensor, timestep: Tensor) -> Tensor:
        """The action of every row; nothing depends on the return."""
        outputs, _, self.state = self.task.step(observation, self.state, None, self.last_action)
        self.last_action = self.task.distribution.mode(outputs)
        return self.task.distribution.to_environment(self.last_action)


class WindowActor:
    """Acts by recomputing the last steps at every step.

    Args:
        task: The policy, in evaluation mode.
        rows: Number of environments that are stepped together.
        window: Number of steps that are recomputed.
    """

    def __init__(self, task: PolicyTask, rows: int, window: int) -> None:
        self.task = task
        self.rows = rows
        self.window = window
        self.start()

    def start(self) -> None:
        """Start an episode in every row."""
        self.steps: list[Tensor] = []  # observations, actions, returns and timesteps, (rows, steps, ...)

    def act(self, observation: Tensor, return_to_go: Tensor, timestep: Tensor) -> Tensor:
        """The action of every row; shapes as in ``PolicyTask.step``."""
        size = () if self.task.discrete else (self.task.output_size,)
        unknown = torch.zeros(len(observation), *size, dtype=torch.long if self.task.discrete else observation.dtype)
        current = observation, unknown.to(observation.device), return_to_go, timestep
        steps = [tensor.unsqueeze(1) for tensor in current]
        if self.steps:
            old = max(0, self.steps[0].shape[1] - self.window + 1)
            steps = [torch.cat([past[:, old:], new], 1) for past, new in zip(self.steps, steps, strict=True)]
        self.steps = steps
        action = self.task.act_window(*self.steps)
        self.steps[1][:, -1] = action
        return action

    def keep(self, rows: Tensor) -> None:
        """Keep only some of the rows, bool (rows,)."""
        self.steps = [tensor[rows] for tensor in self.steps]


Actor = RecurrentActor | OnlineActor | WindowActor


def _actor(task: Policy, rows: int, mode: Mode, window: int) -> Actor:
    if isinstance(task, PPOTask):
        return OnlineActor(task, rows)
    return RecurrentActor(task, rows) if mode == "carry" else WindowActor(task, rows, window)


@torch.inference_mode()
def _run_episodes(
    policy: Actor,
    envs: Sequence[Environment],
    seeds: Sequence[int],
    target: float | None,
    on_step: Callable[[int], None] | None = None,
) -> tuple[list[float], list[int]]:
    """Returns and lengths of one episode in each environment."""
    device = policy.task.device
    starts = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)]
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=int)
    running, step = np.arange(len(seeds)), 0
    observations = np.array(starts, dtype=np.float32)
    unchanged = unchanged_modules()
    while len(running):
        if on_step is not None:
            on_step(step)
        return_to_go = torch.tensor((target or 0.0) - returns[running], dtype=torch.float32, device=device)
        timestep = torch.full((len(running),), step, device=device)
        with unchanged:
            actions = policy.act(torch.from_numpy(observations).to(device), return_to_go, timestep)
        transitions = [
            step_env(envs[int(row)], action) for row, action in zip(running, actions.cpu().numpy(), strict=True)
        ]
        step += 1
        observations = np.array([observation for observation, _, _ in transitions], dtype=np.float32)
        returns[running] += [reward for _, reward, _ in transitions]
        lengths[running] = step
        unfinished = np.array([not done for _, _, done in transitions])
        if not unfinished.all():
            policy.keep(torch.from_numpy(unfinished).to(device))
            running, observations = running[unfinished], observations[unfinished]
    return returns.tolist(), lengths.tolist()


def _make_drawn(task: Policy, env_id: str, env_args: dict[str, Any] | None, metadata: dict[str, Any]) -> Environment:
    """The environment with images, one of which has been drawn.

    Raises:
        InputError: It has none, or they cannot be drawn here.
    """
    if "rgb_array" not in metadata.get("render_modes", ()):
        raise InputError(f"{env_id} has no images to record (no rgb_array in its render_modes): leave out the video")
    try:
        env = _make(task, env_id, env_args, render_mode="rgb_array")
        env.reset(seed=0)
        env.render()
    except Exception as error:  # whatever the drivers raise
        raise InputError(
            f"{env_id} cannot be rendered here ({error}): images of MuJoCo need OpenGL; set MUJOCO_GL to egl or "
            "osmesa, whichever is installed"
        ) from error
    return env


def _record(policy: Actor, env: Environment, seed: int, episodes: RolloutResult) -> None:
    """Run the first episode again and keep images of it."""
    rate = float(env.metadata.get("render_fps", FRAMES_PER_SECOND))
    every = math.ceil(rate / FRAMES_PER_SECOND)

    def on_step(step: int) -> None:
        if step % every == 0:
            episodes.frames.append(np.asarray(env.render())[::2, ::2])

    _run_episodes(policy, [env], [seed], episodes.target, on_step)
    episodes.frames_per_second = rate / every
