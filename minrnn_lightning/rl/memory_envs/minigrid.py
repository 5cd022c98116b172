"""MiniGrid-Memory with its partial view as a vector: which of two objects is the one that was shown at the start?"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from minrnn_lightning.data.extra import rl_module
from minrnn_lightning.errors import InputError

SIZES = (7, 9, 11, 13)


class OneHotView(gymnasium.ObservationWrapper[np.ndarray, Any, dict[str, Any]]):
    """The partial view of MiniGrid as a vector: type, colour and state of every cell one-hot, then the direction.

    Args:
        env: An environment of MiniGrid with its original observations.
    """

    def __init__(self, env: gymnasium.Env[dict[str, Any], Any]) -> None:
        super().__init__(env)
        constants = rl_module("minigrid.core.constants")
        names = constants.OBJECT_TO_IDX, constants.COLOR_TO_IDX, constants.STATE_TO_IDX
        self.tables = [np.eye(len(indices), dtype=np.float32) for indices in names]
        height, width, _ = env.observation_space["image"].shape  # type: ignore[index]
        size = height * width * sum(map(len, self.tables)) + 4
        self.observation_space = Box(0.0, 1.0, (size,), np.float32)

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        """The view as a vector."""
        cells = [table[observation["image"][..., channel]] for channel, table in enumerate(self.tables)]
        direction = np.eye(4, dtype=np.float32)[observation["direction"]]
        return np.concatenate([np.concatenate(cells, -1).ravel(), direction])


def minigrid_memory(size: int = 9, **options: Any) -> OneHotView:
    """MiniGrid-Memory: a key or a ball in a room, then a corridor with both at its end, of which one is to be chosen.

    Choosing the same object ends the episode with a reward of 1 − 0.9·t/limit after t steps, the other one with 0; the
    limit, at which it is truncated, is 5·size² steps. Without memory a policy can do no better than to choose at
    random, with half of the return of one with memory. Random actions have about 0.18 at size 9.

    Source: Chevalier-Boisvert et al. 2023, https://arxiv.org/abs/2306.13831, in the package minigrid.

    Args:
        size: Width of the grid: 7, 9, 11 or 13.
        **options: Of the environment, such as ``render_mode``.

    Raises:
        InputError: There is no such size, or the package is missing.
    """
    if size not in SIZES:
        raise InputError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    rl_module("minigrid")  # importing it registers its environments
    env = gymnasium.make(f"MiniGrid-MemoryS{size}-v0", disable_env_checker=True, **options)
    return OneHotView(env)
