"""Gymnasium's CartPole and Pendulum with positions alone: velocities have to be told from earlier steps."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.spaces import Box


class Positions(gymnasium.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Some components of the observations.

    Args:
        env: An environment whose observations are vectors.
        kept: Indices of the components that remain.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, Any], kept: list[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box)
        self.kept = kept
        self.observation_space = Box(space.low[kept], space.high[kept], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The components that remain."""
        return observation[self.kept]


def cart_pole(**options: Any) -> Positions:
    """CartPole with the position of the cart and the angle of the pole.

    A step has a reward of 1, and an episode at most 500 steps. Random actions have a return of about 22. What a policy
    without memory can reach is not known: all that is left to it is to push by position and angle.

    Source: Barto, Sutton and Anderson 1983, in Gymnasium's version; without velocities as in Wierstra et al. 2010,
    "Recurrent policy gradients".
    """
    return Positions(CartPoleEnv(**options), [0, 2])


def pendulum(**options: Any) -> Positions:
    """Pendulum with the cosine and the sine of its angle.

    The reward of a step is the negative cost of angle, velocity and torque, from −16.3 to 0, over 200 steps. Random
    actions have a return of about −1,240. What a policy without memory can reach is not known.

    Source: Gymnasium's environment; POPGym, https://arxiv.org/abs/2303.01859, has it without velocities too.
    """
    return Positions(PendulumEnv(**options), [0, 1])
