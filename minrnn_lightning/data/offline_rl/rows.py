"""Steps of episodes as rows of equal length: random windows, concatenated (packed) episodes, or streams of these."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minrnn_lightning.batches import TrajectoryBatch, TrajectoryStreamBatch
from minrnn_lightning.data.offline_rl.episodes import EpisodeArrays
from minrnn_lightning.data.sharding import batches_per_process, split_into_batches
from minrnn_lightning.errors import InputError

Integers = npt.NDArray[np.int64]


class Steps:
    """The steps of all episodes, from which rows are gathered.

    Args:
        episodes: The episodes.
    """

    def __init__(self, episodes: EpisodeArrays) -> None:
        self.episodes = episodes
        self.returns_to_go = episodes.returns_to_go()
        self.timesteps = episodes.timesteps()

    def rows(self, index: Integers) -> TrajectoryBatch:
        """The steps with these indices, (batch, length); -1 is padding."""
        padding = index < 0

        def gather(array: npt.NDArray[np.generic]) -> Tensor:
            rows = array[index]
            rows[padding] = 0
            return torch.from_numpy(rows)

        timesteps = gather(self.timesteps).long()
        mask = torch.from_numpy(~padding)
        reset = mask & (timesteps == 0)
        reset[:, 0] = True
        observations, actions, returns_to_go = map(
            gather, (self.episodes.observations, self.episodes.actions, self.returns_to_go)
        )
        return TrajectoryBatch(observations, actions, returns_to_go, timesteps, mask, reset)


def window_index(starts: Integers, ends: Integers, length: int) -> Integers:
    """Indices of the steps from each start on, -1 from its end on: (windows, length)."""
    index = starts[:, None] + np.arange(length)
    return np.where(index < ends[:, None], index, -1)


def tiled_index(starts: Integers, ends: Integers, length: int) -> Integers:
    """Every episode cut into windows from its first step on, -1 after its last one: (windows, length)."""
    windows = -(-(ends - starts) // length)
    number = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    return window_index(np.repeat(starts, windows) + number * length, np.repeat(ends, windows), length)


def packed_index(starts: Integers, ends: Integers, length: int) -> Integers:
    """Every episode right after the one before, cut into rows, -1 at the end of the last: (rows, length)."""
    lengths = ends - starts
    steps = np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return np.pad(steps, (0, -len(steps) % length), constant_values=-1).reshape(-1, length)


class RandomWindows(Dataset[TrajectoryBatch]):
    """An endless stream of windows: an episode with a probability in proportion to its length, a start anywhere in it.

    That is a start at any step with equal probability. A batch depends on seed and position alone, and is
    divided among the processes.

    Args:
        steps: The steps.
        chosen: Indices of the episodes to draw from.
        length: Steps in a window; one that extends beyond the end of its episode is padded.
        batch_size: Windows in a batch of one process.
        batches: Batches in an epoch.
        seed: Seed of the stream.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        steps: Steps,
        chosen: Integers,
        length: int,
        batch_size: int,
        batches: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.steps, self.length, self.batches, self.seed = steps, length, batches, seed
        self.share, self.in_batch = slice(rank * batch_size, (rank + 1) * batch_size), batch_size * world_size
        self.ends = steps.episodes.ends[chosen]
        self.until = np.cumsum(steps.episodes.lengths[chosen])  # steps of the chosen episodes up to the end of each

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, position: int) -> TrajectoryBatch:
        random = np.random.default_rng((self.seed, position))
        drawn = random.integers(self.until[-1], size=self.in_batch)[self.share]
        episode = np.searchsorted(self.until, drawn, side="right")
        ends = self.ends[episode]
        return self.steps.rows(window_index(ends - (self.until[episode] - drawn), ends, self.length))


class PackedEpisodes(Dataset[TrajectoryBatch]):
    """An endless stream of packed rows; an epoch holds every step once.

    Each epoch has an order of episodes and rows of its own, which depends on the seed and the epoch alone. The rows
    are divided as evenly as possible into equally many batches for every process.

    Args:
        steps: The steps.
        chosen: Indices of the episodes.
        length: Steps in a row; an episode that does not end in its row continues in the next, from a new state.
        batch_size: Most rows in a batch of one process, except where equal numbers of batches need more.
        seed: Seed of the stream.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: There are fewer rows than processes.
    """

    def __init__(
        self,
        steps: Steps,
        chosen: Integers,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.steps, self.chosen, self.length, self.seed = steps, chosen, length, seed
        self.rank, self.world_size = rank, world_size
        rows = -(-int(steps.episodes.lengths[chosen].sum()) // length)
        _check_number(rows, world_size)
        self.batch_size = batch_size
        self.batches_in_epoch = batches_per_process(rows, batch_size, world_size)
        self._epoch: int | None = None
        self._batches: list[Integers] = []

    def __len__(self) -> int:
        return self.batches_in_epoch

    def __getitem__(self, position: int) -> TrajectoryBatch:
        epoch, batch = divmod(position, len(self))
        return self.steps.rows(self.batches(epoch)[batch * self.world_size + self.rank])

    def batches(self, epoch: int) -> list[Integers]:
        """The steps of every batch of every process in an epoch, each (rows, length)."""
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            order = random.permutation(self.chosen)
            episodes = self.steps.episodes
            index = packed_index(episodes.starts[order], episodes.ends[order], self.length)
            self._batches = split_into_batches(random.permutation(index), self.batch_size, self.world_size)
            self._epoch = epoch
        return self._batches


class EpisodeStreams(Dataset[TrajectoryStreamBatch]):
    """Concatenated episodes in contiguous parts; every row of a batch continues the same row of the batch before.

    A pass cuts the steps into as many parts as there are rows in the batches of all processes, which differ by one step
    at most and end with padding. It holds every step once. The rows are divided among the processes in order: R
    processes with batches of B read together what one process with batches of R·B reads.

    Args:
        steps: The steps.
        chosen: Indices of the episodes.
        length: Steps in a row of a batch.
        batch_size: Rows in a batch of one process.
        seed: Seed of the order of the episodes, another one in every pass; None for the order given.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: There are fewer steps than rows.
    """

    def __init__(
        self,
        steps: Steps,
        chosen: Integers,
        length: int,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.steps, self.chosen, self.length, self.seed = steps, chosen, length, seed
        self.rows = batch_size * world_size
        self.own = slice(rank * batch_size, (rank + 1) * batch_size)
        count = int(steps.episodes.lengths[chosen].sum())
        if count < self.rows:
            raise InputError(
                f"The episodes are too short for streams: they have {count} steps, and there are {self.rows} rows; "
                "give more episodes, or lower batch_size"
            )
        self.ends = np.arange(1, self.rows + 1) * count // self.rows
        self.starts = np.concatenate([[0], self.ends[:-1]])
        self._pass: int | None = None
        self._order: Integers = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return int(-(-(self.ends - self.starts).max() // self.length))

    def __getitem__(self, position: int) -> TrajectoryStreamBatch:
        number, batch = divmod(position, len(self))
        places = window_index((self.starts + batch * self.length)[self.own], self.ends[self.own], self.length)
        batch_of_steps = self.steps.rows(np.where(places < 0, -1, self.order(number)[places]))
        reset = batch_of_steps.mask & (batch_of_steps.timesteps == 0)
        return TrajectoryStreamBatch(*batch_of_steps._replace(reset=reset), continues=batch > 0)

    def order(self, number: int) -> Integers:
        """The indices of all steps in the order of a pass."""
        if number != self._pass:
            chosen = self.chosen
            if self.seed is not None:
                chosen = np.random.default_rng((self.seed, number)).permutation(chosen)
            episodes = self.steps.episodes
            self._order = packed_index(episodes.starts[chosen], episodes.ends[chosen], 1)[:, 0]
            self._pass = number
        return self._order


class HeldOutRows(Dataset[TrajectoryBatch]):
    """Rows in order, every one exactly once over all processes.

    Args:
        steps: The steps.
        index: The indices of the steps of each row, (rows, length).
        batch_size: Most rows in a batch of one process, except where equal numbers of batches need more.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: There are fewer rows than processes.
    """

    def __init__(self, steps: Steps, index: Integers, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.steps = steps
        _check_number(len(index), world_size)
        self.batches = split_into_batches(index, batch_size, world_size)[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> TrajectoryBatch:
        return self.steps.rows(self.batches[batch])


def _check_number(rows: int, world_size: int) -> None:
    """Refuse fewer rows than processes.

    Raises:
        InputError: There are fewer rows than processes.
    """
    if rows < world_size:
        raise InputError(f"There are {rows} rows of steps, too few for {world_size} processes; lower length")
