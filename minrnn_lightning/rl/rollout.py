"""Playing episodes with a trained policy: its state is carried along, or a window of steps computed again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from minrnn_lightning.errors import InputError
from minrnn_lightning.rl.environments import Environment, check_spaces, make, step_env
from minrnn_lightning.tasks import PolicyTask
from minrnn_lightning.tasks.load import load_task

Mode = Literal["carry", "window"]

FRAMES_PER_SECOND = 30  # of a recording, at most


@dataclass
class RolloutResult:
    """What was played for one target.

    Args:
        target: The return that was asked for; None where the policy is not told one.
        returns: Undiscounted return of each episode.
        lengths: Steps of each.
        seconds: Time that all of them took together.
        frames: Pictures of the first episode at half size, uint8 (height, width, 3), if they were asked for.
        frames_per_second: Of these, to see it at its own speed.
    """

    target: float | None
    returns: list[float]
    lengths: list[int]
    seconds: float
    frames: list[np.ndarray] = field(default_factory=list, repr=False)
    frames_per_second: float = 0.0


def load_policy(path: str | Path) -> PolicyTask:
    """The trained policy, from nothing but a checkpoint.

    Raises:
        CheckpointError: the file cannot be read, or holds another task.
    """
    return load_task(path, PolicyTask, "act in an environment")[0]


def rollout(
    task: PolicyTask,
    env_id: str,
    episodes: int = 10,
    targets: Sequence[float | None] = (None,),
    *,
    mode: Mode = "carry",
    window: int = 20,
    seed: int = 0,
    num_envs: int = 32,
    record: bool = False,
) -> list[RolloutResult]:
    """Play whole episodes for every target.

    Episode i starts from ``seed`` + i, for every target alike. Each environment plays one episode and is set aside when
    that ends, so that nothing depends on how a vectorised environment starts the next one.

    Args:
        task: A trained policy; put in evaluation mode while it plays.
        env_id: Name of a Gymnasium environment, such as Hopper-v5.
        episodes: How many to play for each target.
        targets: Returns to ask for; the reward of every step is taken off what is still wanted. None where the policy
            is not told a return.
        mode: ``carry`` takes one step of the model for each step of the environment, its state carried along;
            ``window`` computes the last steps again.
        window: How many, for ``window``.
        seed: Of the first episode.
        num_envs: Environments that are played side by side, in one batch of the policy.
        record: Keep pictures of the first episode of the first target.

    Returns:
        The episodes of each target.

    Raises:
        InputError: An argument is out of range, the environment is unknown or does not fit the policy.
    """
    for name, value in (("episodes", episodes), ("window", window), ("num_envs", num_envs)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if mode not in ("carry", "window"):
        raise InputError(f"mode must be carry or window, got {mode}")
    if task.condition_on_return and (not targets or not all(t is not None and math.isfinite(t) for t in targets)):
        raise InputError("this policy is told the return that is wanted: give a target_return, such as 3600")
    count = min(num_envs, episodes)
    envs = [make(env_id)]
    training = task.training
    task.eval()
    try:
        check_spaces(task, envs[0], env_id)
        envs += [make(env_id) for _ in range(count - 1)]
        played = []
        for target in targets:
            result = RolloutResult(target, [], [], 0.0)
            started = time.perf_counter()
            for first in range(0, episodes, count):
                seeds = range(seed + first, seed + min(first + count, episodes))
                policy = RecurrentActor(task, len(seeds)) if mode == "carry" else WindowActor(task, len(seeds), window)
                returns, lengths = _play(policy, envs, seeds, target)
                result.returns += returns
                result.lengths += lengths
            result.seconds = time.perf_counter() - started
            played.append(result)
    finally:
        task.train(training)
        for env in envs:
            env.close()
    if record:
        policy = RecurrentActor(task, 1) if mode == "carry" else WindowActor(task, 1, window)
        _record(policy, env_id, seed, played[0])
    return played


class RecurrentActor:
    """A policy that carries its state: the cost of a step is constant.

    Args:
        task: What acts, in evaluation mode.
        rows: Environments that are played side by side.
    """

    def __init__(self, task: PolicyTask, rows: int) -> None:
        self.task = task
        self.rows = rows
        self.start()

    def start(self) -> None:
        """Begin an episode in every row."""
        self.state = self.task.initial_state(self.rows)
        self.before: Tensor | None = None

    def act(self, observation: Tensor, return_to_go: Tensor, timestep: Tensor) -> Tensor:
        """The action of every row; shapes as in ``PolicyTask.step``."""
        given = observation, self.before, return_to_go, timestep
        self.before, self.state = self.task.step(*given, self.state)
        return self.before

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, bool (rows,)."""
        self.before = None if self.before is None else self.before[rows]
        self.state = _select(self.state, rows)


class WindowActor:
    """A policy that computes the last steps again at each.

    Args:
        task: What acts, in evaluation mode.
        rows: Environments that are played side by side.
        window: Steps that are computed.
    """

    def __init__(self, task: PolicyTask, rows: int, window: int) -> None:
        self.task = task
        self.rows = rows
        self.window = window
        self.start()

    def start(self) -> None:
        """Begin an episode in every row."""
        self.steps: list[Tensor] = []  # observations, actions, returns and timesteps, (rows, steps, ...)

    def act(self, observation: Tensor, return_to_go: Tensor, timestep: Tensor) -> Tensor:
        """The action of every row; shapes as in ``PolicyTask.step``."""
        size = () if self.task.discrete else (self.task.output_size,)
        unknown = torch.zeros(len(observation), *size, dtype=torch.long if self.task.discrete else observation.dtype)
        now = [each.unsqueeze(1) for each in (observation, unknown.to(observation.device), return_to_go, timestep)]
        if self.steps:
            old = max(0, self.steps[0].shape[1] - self.window + 1)
            now = [torch.cat([past[:, old:], new], 1) for past, new in zip(self.steps, now, strict=True)]
        self.steps = now
        action = self.task.act_window(*self.steps)
        self.steps[1][:, -1] = action
        return action

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, bool (rows,)."""
        self.steps = [each[rows] for each in self.steps]


@torch.inference_mode()
def _play(
    policy: RecurrentActor | WindowActor,
    envs: Sequence[Environment],
    seeds: Sequence[int],
    target: float | None,
    watch: Callable[[int], None] | None = None,
) -> tuple[list[float], list[int]]:
    """Returns and lengths of one episode in each environment."""
    device = policy.task.device
    starts = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)]
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), dtype=int)
    playing, step = np.arange(len(seeds)), 0
    observations = np.array(starts, dtype=np.float32)
    while len(playing):
        if watch is not None:
            watch(step)
        wanted = torch.tensor((target or 0.0) - returns[playing], dtype=torch.float32, device=device)
        timestep = torch.full((len(playing),), step, device=device)
        actions = policy.act(torch.from_numpy(observations).to(device), wanted, timestep)
        taken = [step_env(envs[int(row)], action) for row, action in zip(playing, actions.cpu().numpy(), strict=True)]
        step += 1
        observations = np.array([observation for observation, _, _ in taken], dtype=np.float32)
        returns[playing] += [reward for _, reward, _ in taken]
        lengths[playing] = step
        going_on = np.array([not done for _, _, done in taken])
        if not going_on.all():
            policy.keep(torch.from_numpy(going_on).to(device))
            playing, observations = playing[going_on], observations[going_on]
    return returns.tolist(), lengths.tolist()


def _select(state: Any, rows: Tensor) -> Any:
    """Some rows of a tree of tensors."""
    if isinstance(state, (list, tuple)):
        return type(state)(_select(part, rows) for part in state)
    return None if state is None else state[rows]


def _record(policy: RecurrentActor | WindowActor, env_id: str, seed: int, episodes: RolloutResult) -> None:
    """Play the first episode once more, with pictures."""
    try:
        env = make(env_id, render_mode="rgb_array")
        env.reset(seed=seed)
        env.render()
    except Exception as error:  # whatever the drivers raise
        raise InputError(
            f"{env_id} cannot be drawn here ({error}): pictures need OpenGL; set MUJOCO_GL to egl or osmesa, whichever "
            "is installed"
        ) from error
    rate = float(env.metadata.get("render_fps", FRAMES_PER_SECOND))
    every = math.ceil(rate / FRAMES_PER_SECOND)

    def watch(step: int) -> None:
        if step % every == 0:
            episodes.frames.append(np.asarray(env.render())[::2, ::2])

    _play(policy, [env], [seed], episodes.target, watch)
    episodes.frames_per_second = rate / every
    env.close()
