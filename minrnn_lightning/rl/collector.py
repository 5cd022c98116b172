"""``Collector``: steps of a recurrent policy in vectorised environments, as batches for ``PPOTask``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minrnn_lightning.batches import RolloutBatch
from minrnn_lightning.nn import select_state, unchanged_modules
from minrnn_lightning.rl.spaces import to_action_space
from minrnn_lightning.tasks import PPOTask
from minrnn_lightning.tasks.ppo_functional import discounted_returns, gae


class Collector:
    """Collects rollouts of a policy, each from where the one before ended.

    An environment that ends an episode starts the next one in the same step. The rewards of a truncated episode are
    continued with the value of its last observation.

    Args:
        envs: A vector environment of Gymnasium that resets in the same step.
        task: The policy.
        generator: Of the random actions, on the CPU.
        seeds: Of the environments.
    """

    def __init__(self, envs: Any, task: PPOTask, generator: torch.Generator, seeds: Sequence[int]) -> None:
        self.envs, self.task, self.generator = envs, task, generator
        self.observation, _ = envs.reset(seed=list(seeds))
        self.start = np.ones(envs.num_envs, bool)  # whether an episode starts with the next step
        self.state = task.initial_state(envs.num_envs)
        self.action: Tensor | None = None  # of the last step
        self.observed: Tensor | None = None  # in the last rollout, not yet in the statistics
        self.discounted = torch.zeros(envs.num_envs)  # sums of the rewards so far
        self.returns, self.lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, int)
        self.finished: list[tuple[float, int]] = []  # return and length of the episodes that ended in the last rollout
        self.seconds = 0.0  # that the last rollout took
        self.steps = 0  # in all environments together

    def collect(self, length: int) -> RolloutBatch:
        """Run all environments for some steps.

        The statistics of the observations are those of the rollouts before; before the first one, another is collected
        for them alone.

        Args:
            length: Steps in each environment.

        Returns:
            A row for each environment.
        """
        if self.observed is None and self.task.normalize_observations and not self.task.observation_count:
            self._run(length)
        if self.observed is not None:
            self.task.update_observations(self.observed)
        return self._run(length)

    def _run(self, length: int) -> RolloutBatch:
        started, training = time.perf_counter(), self.task.training
        trainer = self.task._trainer  # ``trainer`` raises an error where there is none
        precision = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
        self.finished = []
        before = self.state
        self.task.eval()
        with torch.no_grad(), precision, unchanged_modules():
            steps = [self._step() for _ in range(length)]
            columns = {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}
            _, following, _ = self._act()
        self.task.train(training)
        rewards, values = columns["rewards"], columns["values"]
        next_values = torch.cat([values[:, 1:], following.float().unsqueeze(1)], 1)
        next_values = torch.where(columns["ended"], columns["final_values"], next_values)
        sums = discounted_returns(rewards, columns["reset"], self.discounted.to(rewards), self.task.gamma)
        self.discounted = sums[:, -1]
        discounts = {"gamma": self.task.gamma, "gae_lambda": self.task.gae_lambda}
        scaled = self.task.scaled_rewards(rewards, sums)
        advantages = gae(scaled, values, next_values, columns["ended"], **discounts)
        self.observed = columns["observations"]
        self.steps += rewards.numel()
        self.seconds = time.perf_counter() - started
        names = ("observations", "actions", "previous_actions", "log_probs", "values", "reset")
        return RolloutBatch(**{name: columns[name] for name in names}, advantages=advantages, state=before)

    def _act(self) -> tuple[Tensor, Tensor, Any]:
        """Outputs, values and the next state at the current observations."""
        device = self.task.device
        observation = torch.as_tensor(self.observation, dtype=torch.float32, device=device)
        return self.task.step(observation, self.state, torch.as_tensor(self.start, device=device), self.action)

    def _step(self) -> dict[str, Tensor]:
        """Act once in every environment; the columns of the rollout at this step."""
        task, device = self.task, self.task.device
        outputs, values, state = self._act()
        noise = task.distribution.noise(outputs.shape, self.generator).to(device)
        action = task.distribution.sample(outputs, noise)
        previous = torch.zeros_like(action) if self.action is None else self.action
        columns = {
            "observations": torch.as_tensor(self.observation, dtype=torch.float32, device=device),
            "actions": action,
            "previous_actions": previous,
            "log_probs": task.distribution.log_prob(outputs, action),
            "values": values.float(),
            "reset": torch.as_tensor(self.start, device=device),
        }
        chosen = to_action_space(task.distribution.to_environment(action).cpu().numpy(), self.envs.single_action_space)
        self.observation, reward, terminated, truncated, info = self.envs.step(chosen)
        self.state, self.action, self.start = state, action, terminated | truncated
        columns |= {
            "rewards": torch.as_tensor(reward, dtype=torch.float32, device=device),
            "ended": torch.as_tensor(self.start, device=device),
            "final_values": self._final_values(truncated & ~terminated, info, columns["values"]),
        }
        self.returns += reward
        self.lengths += 1
        rows = self.start.nonzero()[0]
        self.finished += zip(self.returns[rows].tolist(), self.lengths[rows].tolist(), strict=True)
        self.returns[rows] = self.lengths[rows] = 0
        return columns

    def _final_values(self, truncated: np.ndarray, info: dict[str, Any], like: Tensor) -> Tensor:
        """Values of the last observations of truncated episodes, (num_envs,); 0 elsewhere."""
        final = torch.zeros_like(like)
        if truncated.any():
            rows = torch.as_tensor(truncated, device=like.device)
            last = torch.as_tensor(np.stack(info["final_obs"][truncated]), dtype=torch.float32, device=like.device)
            assert self.action is not None
            _, values, _ = self.task.step(last, select_state(self.state, rows), None, self.action[rows])
            final[rows] = values.float()
        return final
