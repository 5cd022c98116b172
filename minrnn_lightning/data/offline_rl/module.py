"""Offline RL data for sequence models: rows of observations, actions and returns-to-go."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minrnn_lightning.batches import TrajectoryBatch, TrajectoryStreamBatch
from minrnn_lightning.data.module import BaseDataModule
from minrnn_lightning.data.offline_rl.d4rl import NAMES, D4RLFile, D4RLSet
from minrnn_lightning.data.offline_rl.episodes import EpisodeArrays, EpisodeFolder, Source
from minrnn_lightning.data.offline_rl.minari import ID, METADATA, MinariSet
from minrnn_lightning.data.offline_rl.rows import (
    EpisodeStreams,
    HeldOutRows,
    PackedEpisodes,
    RandomWindows,
    Steps,
    packed_index,
    tiled_index,
)
from minrnn_lightning.errors import InputError

BLOCK = 1 << 16  # steps whose mean and standard deviation are computed at once, in float64
# How far recorded actions may lie outside their space, as a fraction of half of it: the rounding error of float16.
ROUNDING = 1e-3


class TrajectoryDataModule(BaseDataModule):
    """Offline RL data: observations, actions and returns-to-go.

    A batch is ``TrajectoryBatch``, rows of ``length`` steps. With ``windows``, each row is a part of one episode:
    episodes are drawn in proportion to their length, with replacement, starts uniformly, and steps past the end of an
    episode are masked. With ``episodes``, complete episodes are concatenated in the rows, ``reset`` marks
    where each begins, and an epoch holds every step once. A fraction of the episodes, independent of the seed, is
    held out; validation, test and prediction run over it in order, every step once.

    After ``setup`` these are known: ``env_id``, the Gymnasium environment or None; ``env_args``, its arguments and time
    limit as ``gymnasium.make`` takes them, or None; ``discrete``, whether actions are discrete; ``action_low`` and
    ``action_high``, float32 (action_size,), the bounds of the environment's actions where the data set gives finite
    ones, else the lowest and the highest recorded action, or −1 and 1 where that is wider; None for discrete actions;
    ``observation_mean`` and ``observation_std`` of the training steps, float32 (observation_size,), the latter plus
    1e-6; ``episode_returns`` of all episodes, undiscounted, float64 (episodes,), and the largest and mean of them,
    ``max_return`` and ``mean_return``; ``episode_length``, the longest.

    Args:
        dataset: A data set of D4RL such as ``hopper-medium-v2``, whose file is looked for in ``data_dir`` and
            downloaded to ``d4rl`` in it where missing; the path of an HDF5 file in D4RL's layout; a data set of Minari
            such as ``mujoco/hopper/medium-v0``, looked for in ``$MINARI_DATASETS_PATH``, ``minari`` in ``data_dir``
            and ``~/.minari/datasets`` and downloaded where missing, or its folder; or a folder with one ``.npz`` or
            ``.hdf5`` file for each episode, with the arrays ``observations``, ``actions`` and ``rewards``.
        batch_size: Rows in a batch, per process.
        length: Steps in a row.
        sampling: ``windows`` or ``episodes``.
        steps_per_epoch: Batches in an epoch with ``windows``, whose training stream is endless.
        val_fraction: Fraction of the episodes that is held out, at least one where there are two; 0 holds out none.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.
        stream: Let every row of a batch continue the same row of the batch before, in concatenated episodes, so that
            the task carries its state from batch to batch, in training and evaluation; needs ``sampling: episodes``. A
            batch is then ``TrajectoryStreamBatch``.

    Raises:
        InputError: A size is out of range, the data set unknown or damaged, or the extra ``rl`` not installed.
        FileNotFoundError: The data set is missing.
        ConnectionError: It is missing and cannot be fetched.

    Source: Fu et al. 2020, https://arxiv.org/abs/2004.07219; Minari, https://minari.farama.org; the sampling of windows
    is that of Chen et al. 2021, https://arxiv.org/abs/2106.01345, except that the padding is at the end here.
    """

    batch_type = TrajectoryBatch
    env_id: str | None
    env_args: dict[str, Any] | None
    discrete: bool
    action_low: Tensor | None
    action_high: Tensor | None
    observation_mean: Tensor
    observation_std: Tensor
    episode_returns: npt.NDArray[np.float64]
    max_return: float
    mean_return: float
    episode_length: int

    def __init__(
        self,
        dataset: str,
        batch_size: int = 64,
        length: int = 20,
        sampling: Literal["windows", "episodes"] = "windows",
        steps_per_epoch: int = 1000,
        val_fraction: float = 0.05,
        num_workers: int = 0,
        data_dir: str | None = None,
        stream: bool = False,
    ) -> None:
        super().__init__(batch_size, length, num_workers, data_dir)
        if sampling not in ("windows", "episodes"):
            raise InputError(f"sampling must be windows or episodes, got {sampling}")
        if steps_per_epoch < 1:
            raise InputError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        if stream and sampling != "episodes":
            raise InputError(f"stream needs sampling episodes, as windows are drawn at random, got sampling {sampling}")
        if not 0 <= val_fraction < 1:
            raise InputError(f"val_fraction must be at least 0 and below 1, got {val_fraction}")
        self.dataset = str(dataset)
        self.sampling = sampling
        self.steps_per_epoch = steps_per_epoch
        self.val_fraction = val_fraction
        self.stream = bool(stream)
        self.source = find_source(self.dataset, self.data_dir)

    @property
    def input_size(self) -> int:
        """Size of an observation; a local file is read for it."""
        return self.source.observation_size

    @property
    def output_size(self) -> int:
        """Size of an action, or the number of actions where they are discrete."""
        return self.source.action_size

    def prepare_data(self) -> None:
        """Download the data set where it is missing."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Read the episodes.

        Raises:
            InputError: They have other sizes than the environment, or discrete actions that it does not have.
        """
        episodes = self.source.episodes
        size = self.output_size if episodes.discrete else episodes.actions.shape[1]
        if (episodes.observations.shape[1], size) != (self.input_size, self.output_size):
            raise InputError(
                f"{self.dataset} has observations and actions of {episodes.observations.shape[1]} and {size} numbers, "
                f"its environment of {self.input_size} and {self.output_size}"
            )
        if episodes.discrete and episodes.actions.max() >= size:
            raise InputError(
                f"{self.dataset} has the action {episodes.actions.max()}, its environment {size} actions from 0 on; "
                "make or fetch it again"
            )
        self.env_id, self.env_args = self.source.env_id, self.source.env_args
        self.discrete = episodes.discrete
        self.action_low, self.action_high = self.bounds
        self.episode_returns = episodes.returns
        self.max_return, self.mean_return = float(self.episode_returns.max()), float(self.episode_returns.mean())
        self.episode_length = int(episodes.lengths.max())
        self.observation_mean, self.observation_std = self.moments

    @cached_property
    def steps(self) -> Steps:
        """The steps of all episodes."""
        return Steps(self.source.episodes)

    @cached_property
    def splits(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Indices of the training and of the held-out episodes, both in ascending order."""
        count = len(self.source.episodes.ends)
        held_out = min(max(1, round(self.val_fraction * count)), count - 1) if self.val_fraction else 0
        order = np.random.default_rng(0).permutation(count)
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation plus 1e-6 of the observations of the training steps."""
        return moments(self.source.episodes, self.splits[0])

    @cached_property
    def bounds(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The lowest and the highest action: float32 (action_size,) each."""
        episodes = self.source.episodes
        return (None, None) if episodes.discrete else bounds(episodes, self.source.action_bounds, self.dataset)

    def train_dataloader(self) -> DataLoader[Any]:
        """The training stream, from the current position on."""
        rows: Dataset[TrajectoryBatch] | Dataset[TrajectoryStreamBatch]
        share = (self.steps, self.splits[0], self.length, self.batch_size)
        if self.stream:
            rows = EpisodeStreams(*share, self.global_seed, *self.processes)
        elif self.sampling == "windows":
            rows = RandomWindows(*share, self.steps_per_epoch, self.global_seed, *self.processes)
        else:
            rows = PackedEpisodes(*share, self.global_seed, *self.processes)
        return self.loader(rows, stream=True)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The held-out episodes in order; empty where none is held out."""
        _, held_out = self.splits
        if not len(held_out):
            return []
        if self.stream:
            return self.loader(
                EpisodeStreams(self.steps, held_out, self.length, self.batch_size, None, *self.processes)
            )
        episodes = self.source.episodes
        index = tiled_index if self.sampling == "windows" else packed_index
        rows = index(episodes.starts[held_out], episodes.ends[held_out], self.length)
        return self.loader(HeldOutRows(self.steps, rows, self.batch_size, *self.processes))

    def test_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The same as for the validation."""
        return self.val_dataloader()


def find_source(dataset: str, data_dir: Path) -> Source:
    """The source of the episodes of a data set.

    Args:
        dataset: A path, a name of D4RL or an id of Minari.
        data_dir: Folder of the data sets.

    Raises:
        InputError: It is neither.
        FileNotFoundError: It looks like a path that does not exist.
    """
    path = Path(dataset).expanduser()
    if path.is_file():
        return D4RLFile(path)
    if path.is_dir():
        return MinariSet(path, data_dir) if (path / METADATA).is_file() else EpisodeFolder(path)
    if dataset in NAMES:
        return D4RLSet(dataset, data_dir)
    if ID.fullmatch(dataset):
        source = MinariSet(dataset, data_dir)
        if "/" in dataset or source.folder:
            return source
    error = FileNotFoundError if path.suffix or "/" in dataset else InputError
    raise error(
        f"{dataset} is neither a file nor a folder here, nor a data set of D4RL ({', '.join(NAMES)}), nor the id of "
        "one of Minari, such as mujoco/hopper/medium-v0"
    )


def bounds(
    episodes: EpisodeArrays, known: tuple[npt.ArrayLike, npt.ArrayLike] | None, dataset: str
) -> tuple[Tensor, Tensor]:
    """The lowest and the highest action, float32 (action_size,) each; a warning says if recorded ones are outside.

    Args:
        episodes: With actions that are vectors.
        known: The bounds of the environment, if known; where they are not finite, the recorded actions are used.
        dataset: Name of the data set, for the warning.
    """
    least, greatest = episodes.actions.min(axis=0), episodes.actions.max(axis=0)
    low, high = (np.broadcast_to(np.asarray(end, np.float32), least.shape) for end in known or (-np.inf, np.inf))
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(high - low) & (low < high)
    low = np.where(finite, low, np.minimum(least, np.float32(-1)))
    high = np.where(finite, high, np.maximum(greatest, np.float32(1)))
    beyond = np.maximum(low - least, greatest - high)
    if (beyond > ROUNDING * (high - low) / 2).any():
        worst = int(np.argmax(beyond / (high - low)))
        rank_zero_warn(
            f"{dataset} has actions up to {beyond[worst]:.3g} outside its action space, in component {worst}, which "
            f"goes from {low[worst]:.4g} to {high[worst]:.4g}; a policy cannot take them, so clip the recorded actions "
            "if the environment did."
        )
    return torch.from_numpy(low), torch.from_numpy(high)


def moments(episodes: EpisodeArrays, chosen: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Mean, and standard deviation plus 1e-6, of the observations of some episodes: float32 (observation_size,)."""
    steps = np.concatenate(
        [np.arange(*span) for span in zip(episodes.starts[chosen], episodes.ends[chosen], strict=True)]
    )
    blocks = np.array_split(steps, -(-len(steps) // BLOCK))
    mean = sum(episodes.observations[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(steps)
    squares = sum(np.square(episodes.observations[block] - mean).sum(axis=0) for block in blocks) / len(steps)
    std = np.sqrt(squares) + 1e-6
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))
