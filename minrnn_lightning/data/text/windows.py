"""Windows of tokens as data sets of whole batches: shuffled for training, in order for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from minrnn_lightning.errors import InputError

Batch = tuple[Tensor, Tensor]


def token_array(split: Any) -> npt.NDArray[np.unsignedinteger[Any]]:
    """The tokens of a split, a one-row ``datasets.Dataset``, as a view of its memory-mapped Arrow file: (tokens,)."""
    array: npt.NDArray[np.unsignedinteger[Any]] = split.data.column("tokens").chunk(0).values.to_numpy()
    return array


class TrainingWindows(Dataset[Batch]):
    """An endless stream of shuffled batches; ``len`` of them are an epoch.

    Each epoch cuts the text at a random offset into disjoint windows, so that it meets every token once (but for the
    ends of the text and the windows that fill no whole batch), and shuffles them. Offset and order depend on seed
    and epoch only; processes take turns within a batch, so that R processes with batches of B see together what one
    process with batches of R·B sees.

    Args:
        split: One-row ``datasets.Dataset`` of tokens.
        length: Tokens in a window; the targets are the same tokens one step later.
        batch_size: Windows in a batch of one process.
        seed: Seed of the stream.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: If the split is too short for one batch.
    """

    def __init__(
        self, split: Any, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.split, self.length, self.batch_size = split, length, batch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        tokens = len(token_array(split))
        # The windows that fit at every offset: one less than the text has room for.
        self.windows = max(0, tokens // length - 1)
        in_batch = batch_size * world_size
        if self.windows < in_batch:
            raise InputError(
                f"The training text is too short: it has {tokens} tokens, but a batch of {in_batch} x {length} at "
                f"a random offset needs {(in_batch + 1) * length}; give more text, or lower length or batch_size"
            )
        self._epoch: int | None = None
        self._starts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.windows // (self.batch_size * self.world_size)

    def __getitem__(self, position: int) -> Batch:
        epoch, batch = divmod(position, len(self))
        first = (batch * self.world_size + self.rank) * self.batch_size
        return gather(token_array(self.split), self.starts(epoch)[first : first + self.batch_size], self.length)

    def starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """First tokens of the windows of an epoch, in the order of training: (windows,)."""
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._starts = random.integers(self.length) + self.length * random.permutation(self.windows)
            self._epoch = epoch
        return self._starts


class HeldOutWindows(Dataset[Batch]):
    """The disjoint windows of a held-out split, in order, every one exactly once over all processes.

    The windows are divided as evenly as possible into equally many batches for every process: no process repeats a
    window to keep up with the others, and none is dropped.

    Args:
        split: One-row ``datasets.Dataset`` of tokens.
        length: Tokens in a window; the targets are the same tokens one step later.
        batch_size: Most windows in a batch of one process, except where equal numbers of batches need more.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: If the split has fewer windows than there are processes.
    """

    def __init__(self, split: Any, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.split, self.length = split, length
        tokens = len(token_array(split))
        windows = max(0, tokens - 1) // length
        if windows < world_size:
            raise InputError(
                f"The held-out text is too short: it has {tokens} tokens, but a window of {length} for each of "
                f"{world_size} process{'es' * (world_size > 1)} needs {world_size * length + 1}; "
                "give more text, or lower length"
            )
        batches = min(-(-windows // (batch_size * world_size)), windows // world_size)
        shares = np.array_split(np.arange(windows, dtype=np.int64) * length, batches * world_size)
        self.batches = shares[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return gather(token_array(self.split), self.batches[index], self.length)


def gather(tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], length: int) -> Batch:
    """Inputs and targets of the windows that begin at ``starts``: two int64 tensors (windows, length)."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[starts].astype(np.int64)
    return torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy())
