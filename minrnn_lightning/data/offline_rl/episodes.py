"""Recorded episodes as flat arrays, and their sources; the simplest source is a folder with a file per episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minrnn_lightning.data.folders import visible_files
from minrnn_lightning.data.offline_rl.array_files import ARRAYS, Array, missing_array, read_hdf5, read_npz
from minrnn_lightning.errors import InputError


class EpisodeArrays(NamedTuple):
    """Complete episodes, concatenated.

    Attributes:
        observations: The observation before each step, float32 (steps, observation_size).
        actions: The action of each step, float32 (steps, action_size), or int64 (steps,) where actions are discrete.
        rewards: The reward of each step, float32 (steps,).
        ends: One past the last step of each episode, int64 (episodes,).
    """

    observations: Array
    actions: Array
    rewards: Array
    ends: Array

    @property
    def discrete(self) -> bool:
        """Whether actions are discrete."""
        return self.actions.ndim == 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Steps of each episode: (episodes,)."""
        return np.diff(self.ends, prepend=0)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """First step of each episode: (episodes,)."""
        return self.ends - self.lengths

    @property
    def returns(self) -> npt.NDArray[np.float64]:
        """Sum of the rewards of each episode, undiscounted: (episodes,)."""
        returns: npt.NDArray[np.float64] = np.add.reduceat(self.rewards, self.starts, dtype=np.float64)
        return returns

    def returns_to_go(self) -> npt.NDArray[np.float32]:
        """Sum of the rewards from each step to the end of its episode, undiscounted: (steps,)."""
        after = np.append(np.cumsum(self.rewards[::-1], dtype=np.float64)[::-1], 0)
        returns: npt.NDArray[np.float32] = (after[:-1] - np.repeat(after[self.ends], self.lengths)).astype(np.float32)
        return returns

    def timesteps(self) -> npt.NDArray[np.int32]:
        """Number of each step within its episode, from 0: (steps,)."""
        return (np.arange(len(self.rewards)) - np.repeat(self.starts, self.lengths)).astype(np.int32)


class Source(ABC):
    """A source of episodes."""

    env_id: str | None = None
    """The Gymnasium environment that they were collected in, None where that is not known."""

    env_args: dict[str, Any] | None = None
    """The arguments of ``gymnasium.make`` for it, None where they are not known."""

    @property
    def action_bounds(self) -> tuple[npt.ArrayLike, npt.ArrayLike] | None:
        """The lowest and the highest action of the environment, each (action_size,) or one number for all components.

        None where they are not known.
        """
        return None

    def prepare(self) -> None:  # noqa: B027
        """Download what is missing."""

    @abstractmethod
    def read(self) -> EpisodeArrays:
        """All complete episodes, as they are in the files."""

    @cached_property
    def episodes(self) -> EpisodeArrays:
        """All complete episodes, read once."""
        return self.read()

    @property
    def observation_size(self) -> int:
        """Size of an observation."""
        return int(self.episodes.observations.shape[1])

    @property
    def action_size(self) -> int:
        """Size of an action, or the number of actions where they are discrete."""
        actions = self.episodes.actions
        return int(actions.max()) + 1 if self.episodes.discrete else int(actions.shape[1])


class EpisodeFolder(Source):
    """A folder with a file for each episode: ``.npz``, ``.hdf5`` or ``.h5``, in the order of their names.

    Hidden files, whose names begin with a dot, are left out.

    Each has ``observations`` (steps, observation_size), ``actions`` (steps, action_size) or integers (steps,),
    ``rewards`` (steps,) and perhaps ``terminals`` (steps,), which is True at the last step at most.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: It holds no such file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = visible_files(folder, ".npz", ".hdf5", ".h5")
        if not self.files:
            raise FileNotFoundError(
                f"{folder} holds neither episodes (*.npz, *.hdf5) nor a Minari data set (data/metadata.json)"
            )

    def read(self) -> EpisodeArrays:
        """The episodes of all files.

        Raises:
            InputError: A file is damaged, lacks an array or does not hold exactly one episode.
        """
        return concatenate(map(self._episode, self.files), str(self.folder))

    def _episode(self, file: Path) -> EpisodeArrays:
        arrays = read_npz(file) if file.suffix == ".npz" else read_hdf5(file, ARRAYS, ("terminals",))
        if missing := [name for name in ARRAYS if name not in arrays]:
            raise InputError(missing_array(file, missing[0], arrays))
        terminals = arrays.get("terminals")
        episode = make_episodes(str(file), [arrays["rewards"].size], **arrays)
        if terminals is not None and terminals[:-1].any():
            step = int(terminals.argmax())
            raise InputError(f"{file} holds more than one episode, as its step {step} is terminal; give each a file")
        return episode


def make_episodes(
    source: str, ends: Sequence[int] | Array, observations: Array, actions: Array, rewards: Array, **others: Array
) -> EpisodeArrays:
    """Check arrays and make ``EpisodeArrays`` of them.

    Args:
        source: Their file, for error messages.
        ends: One past the last step of each episode, (episodes,); steps after the last of them are dropped.
        observations: Numbers (steps, observation_size).
        actions: Numbers (steps, action_size), or integers from 0 (steps,).
        rewards: Numbers (steps,).
        others: Further arrays that must have the same number of steps.

    Raises:
        InputError: The arrays do not match, a number is not finite, or there is no complete episode.
    """
    arrays = {"observations": observations, "actions": actions, "rewards": rewards, **others}
    if len({len(array) if array.ndim else -1 for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InputError(f"{source} has arrays of different lengths: {shapes}")
    if other := next((name for name, array in arrays.items() if array.dtype.kind not in "biuf"), None):
        raise InputError(f"{source} has {other} of {arrays[other].dtype}; only real numbers are read")
    if observations.ndim != 2 or rewards.ndim != 1:
        raise InputError(
            f"{source} must have observations (steps, observation_size) and rewards (steps,), got "
            f"{observations.shape} and {rewards.shape}"
        )
    discrete = actions.ndim == 1 and np.issubdtype(actions.dtype, np.integer)
    if not discrete and not (actions.ndim == 2 and np.issubdtype(actions.dtype, np.floating)):
        raise InputError(
            f"{source} must have actions (steps, action_size) of real numbers or (steps,) of integers, got "
            f"{actions.shape} of {actions.dtype}"
        )
    if not len(ends) or not ends[-1]:
        raise InputError(f"{source} has no complete episode of one step or more")
    steps = int(ends[-1])
    episodes = EpisodeArrays(
        observations[:steps].astype(np.float32, copy=False),
        actions[:steps].astype(np.int64 if discrete else np.float32, copy=False),
        rewards[:steps].astype(np.float32, copy=False),
        np.asarray(ends, dtype=np.int64),
    )
    for name in ARRAYS:
        array = getattr(episodes, name)
        if not np.isfinite(array).all():
            step = int(np.argmin(np.isfinite(array).reshape(steps, -1).all(axis=1)))
            raise InputError(f"{source} has {name} that are not finite numbers, first at step {step}")
    if discrete and episodes.actions.min() < 0:
        raise InputError(f"{source} has an action {episodes.actions.min()}; discrete actions must begin with 0")
    return episodes


def concatenate(parts: Iterable[EpisodeArrays], source: str) -> EpisodeArrays:
    """Concatenate sets of episodes.

    Raises:
        InputError: There are none, or their observations or actions differ in size or dtype.
    """
    parts = list(parts)
    if not parts:
        raise InputError(f"{source} has no complete episode of one step or more")
    if len(parts) == 1:
        return parts[0]
    for name in ("observations", "actions"):
        types = dict.fromkeys((getattr(part, name).dtype.name, getattr(part, name).shape[1:]) for part in parts)
        if len(types) > 1:
            found = " and ".join(f"{dtype} of {list(shape)}" for dtype, shape in types)
            raise InputError(f"{source} has episodes with different {name}: {found}")
    offsets = np.cumsum([0, *(len(part.rewards) for part in parts[:-1])])
    ends = np.concatenate([part.ends + offset for part, offset in zip(parts, offsets, strict=True)])
    observations, actions, rewards = (np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS)
    return EpisodeArrays(observations, actions, rewards, ends)
