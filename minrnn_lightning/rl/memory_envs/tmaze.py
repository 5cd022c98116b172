"""The T-maze of Bakker 2001: a sign at the start says which way to turn at the end of a corridor."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

from minrnn_lightning.errors import InputError

NORTH, EAST, SOUTH, WEST = range(4)
START_NORTH, START_SOUTH, CORRIDOR, JUNCTION = (0, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 0)


class TMaze(gymnasium.Env[np.ndarray, np.int64]):
    """A corridor from west to east that ends in a junction; the sign at its start says whether to turn north or south.

    Actions are to go north, east, south or west. Turning at the junction ends the episode, with a reward of 4 in the
    direction of the sign and −0.1 in the other one. Going against a wall has a reward of −0.1, any other step 0. After
    ``limit`` steps an episode is truncated, which Bakker's is not.

    Undiscounted returns: at most 4; at most 1.95 without memory, by going east and then one way; random actions have
    about −5.0 at length 10.

    Source: Bakker 2001, "Reinforcement Learning with Long Short-Term Memory", section 4.1,
    https://proceedings.neurips.cc/paper/2001/hash/a38b16173474ba8b1a95bcbc30d3b8a5-Abstract.html.

    Args:
        length: Steps from the start to the junction.
        limit: Steps after which an episode is truncated; ten for each of the maze by default.

    Raises:
        InputError: The length is not positive, or the limit too short to reach the end.
    """

    def __init__(self, length: int = 10, limit: int | None = None) -> None:
        if length < 1:
            raise InputError(f"length must be at least 1, got {length}")
        if limit is not None and limit <= length:
            raise InputError(f"limit must be above the length of the T-maze, {length}, got {limit}")
        self.length = length
        self.limit = limit or 10 * (length + 1)
        self.observation_space = Box(0.0, 1.0, (3,), np.float32)
        self.action_space = Discrete(4)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start at the west end with a random sign."""
        super().reset(seed=seed)
        self.goal = NORTH if self.np_random.integers(2) else SOUTH
        self.position = self.steps = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Go one step."""
        self.steps += 1
        if self.position == self.length and action in (NORTH, SOUTH):
            return self._observation(), 4.0 if action == self.goal else -0.1, True, False, {}
        before = self.position
        self.position = min(max(self.position + (action == EAST) - (action == WEST), 0), self.length)
        reward = -0.1 if self.position == before else 0.0
        return self._observation(), reward, False, self.steps >= self.limit, {}

    def _observation(self) -> np.ndarray:
        if self.position == 0:
            seen = START_NORTH if self.goal == NORTH else START_SOUTH
        else:
            seen = JUNCTION if self.position == self.length else CORRIDOR
        return np.array(seen, np.float32)
