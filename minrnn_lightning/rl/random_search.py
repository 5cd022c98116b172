"""Augmented random search (Mania et al. 2018): a linear policy for an environment, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Settings(NamedTuple):
    """Hyper-parameters of the search.

    Attributes:
        directions: Random directions tried in an iteration, each forwards and backwards.
        top: Number of the best directions, which are used.
        step: Step size of the weights.
        noise: Scale of the random directions.
        iterations: Number of steps.
    """

    directions: int
    top: int
    step: float
    noise: float
    iterations: int


class LinearPolicy(NamedTuple):
    """A linear policy on normalised observations.

    Attributes:
        weights: (action_size, observation_size).
        mean: Mean of all observations so far, (observation_size,).
        std: Standard deviation of them, (observation_size,).
    """

    weights: Floats
    mean: Floats
    std: Floats

    def __call__(self, observation: Floats) -> Floats:
        """The action: (action_size,)."""
        action: Floats = self.weights @ ((observation - self.mean) / self.std)
        return action


class Episode(NamedTuple):
    """One episode.

    Attributes:
        observations: (steps + 1, observation_size); the last one follows the last step.
        actions: (steps, action_size).
        rewards: (steps,).
        survival: The part of the return that rewards survival.
        terminated: Whether it ended in a terminal state.
        truncated: Whether the limit of steps ended it.
    """

    observations: Floats
    actions: npt.NDArray[Any]
    rewards: Floats
    survival: float
    terminated: bool
    truncated: bool


class Trial(NamedTuple):
    """A policy that was tried, and its return; ``run_episode(env, policy, seed)`` gives the same episode again.

    Attributes:
        policy: The policy.
        seed: Seed of the episode.
        score: Return of the episode.
    """

    policy: LinearPolicy
    seed: int
    score: float


def run_episode(env: Any, policy: LinearPolicy, seed: int, noise: float = 0.0) -> Episode:
    """Run one episode.

    Args:
        env: A Gymnasium environment with vectors of real numbers as observations and actions.
        policy: The policy.
        seed: Seed of the environment and the noise.
        noise: Standard deviation of the Gaussian noise on every action, which is then clipped to the action space.
    """
    random = np.random.default_rng(seed)
    low, high, dtype = env.action_space.low, env.action_space.high, env.action_space.dtype
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, survival = [observation], [], [], 0.0
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy(observation)
        if noise:
            action = action + noise * random.standard_normal(len(action))
        actions.append(np.minimum(np.maximum(action, low), high).astype(dtype))
        observation, reward, terminated, truncated, about = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        survival += about.get("reward_survive", 0.0)
    return Episode(
        np.array(observations, np.float64), np.array(actions), np.array(rewards), survival, terminated, truncated
    )


def search(env: Any, settings: Settings, seed: int) -> Iterator[tuple[LinearPolicy, list[Trial]]]:
    """Search for a policy, as version V2-t of the paper does: normalised observations, the best directions only.

    The reward for surviving (``reward_survive`` in the info of a step) does not count, or the search would end in
    policies that stand still. Both signs of a direction are tried in the same episode.

    Args:
        env: A Gymnasium environment with vectors of real numbers as observations and actions.
        settings: Hyper-parameters of the search.
        seed: Seed of directions and episodes.

    Yields:
        After each iteration, the policy that it began with and its trials.

    Source: https://arxiv.org/abs/1803.07055, algorithm 2.
    """
    random = np.random.default_rng(seed)
    size = env.observation_space.shape[0]
    policy = LinearPolicy(np.zeros((env.action_space.shape[0], size)), np.zeros(size), np.ones(size))
    count, squares = 0, np.zeros(size)
    for _ in range(settings.iterations):
        directions = random.standard_normal((settings.directions, *policy.weights.shape))
        trials: list[Trial] = []
        scores, observations = np.empty((settings.directions, 2)), []
        for row, direction in zip(scores, directions, strict=True):
            episode_seed = int(random.integers(2**31))
            for column, sign in enumerate((1, -1)):
                tried = policy._replace(weights=policy.weights + sign * settings.noise * direction)
                episode = run_episode(env, tried, episode_seed)
                trials.append(Trial(tried, episode_seed, float(episode.rewards.sum())))
                row[column] = trials[-1].score - episode.survival
                observations.append(episode.observations[:-1])
        yield policy, trials
        best = np.argsort(-scores.max(axis=1), kind="stable")[: settings.top]
        gain = np.tensordot(scores[best, 0] - scores[best, 1], directions[best], axes=1)
        weights = policy.weights + settings.step / (settings.top * (scores[best].std() + 1e-8)) * gain
        # The moments of all observations so far, from those before and those of this iteration (Chan et al. 1979).
        new = np.concatenate(observations)
        shift, total = new.mean(axis=0) - policy.mean, count + len(new)
        squares = squares + np.square(new - new.mean(axis=0)).sum(axis=0) + shift**2 * count * len(new) / total
        mean, count = policy.mean + shift * len(new) / total, total
        std = np.sqrt(squares / count)
        policy = LinearPolicy(weights, mean, np.where(std < 1e-7, np.inf, std))
