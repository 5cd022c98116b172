"""Windows of tokens as data sets of batches: shuffled for training, in order for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from minrnn_lightning.batches import TextBatch
from minrnn_lightning.data.sharding import split_into_batches
from minrnn_lightning.errors import InputError

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class TokenWindows(Dataset[TextBatch]):
    """Windows of one array of tokens."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        self.tokens, self.length = tokens, length

    def gather(self, starts: npt.NDArray[np.int64]) -> TextBatch:
        """Inputs and targets of the windows that begin at ``starts``: two int64 tensors (windows, length)."""
        views = np.lib.stride_tricks.sliding_window_view(self.tokens, self.length + 1)
        windows = views[starts].astype(np.int64)
        return TextBatch(torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy()))

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is not forked maps the file itself instead of receiving a copy of its contents.
        file = getattr(self.tokens, "filename", None)
        return self.__dict__ if file is None else {**self.__dict__, "tokens": file}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.tokens, (str, Path)):
            self.tokens = np.load(self.tokens, mmap_mode="r")


class TrainingWindows(TokenWindows):
    """An endless stream of shuffled batches; ``len`` of them are an epoch.

    Each epoch cuts the text at a random offset into disjoint windows, so that it has every token once (except at
    the ends of the text and in windows that do not fill a batch), and shuffles them. Offset and order depend on seed
    and epoch only; processes take turns within a batch, so that R processes with batches of B see together what one
    process with batches of R·B sees.

    Args:
        tokens: The tokens of the split, unsigned integers (tokens,).
        length: Tokens in a window; the targets are the same tokens one step later.
        batch_size: Windows in a batch of one process.
        seed: Seed of the stream.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: The split is too short for one batch.
    """

    def __init__(
        self, tokens: Tokens, length: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(tokens, length)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        # The windows that fit at every offset: one less than the text has room for.
        self.windows = max(0, len(tokens) // length - 1)
        in_batch = batch_size * world_size
        if self.windows < in_batch:
            raise InputError(
                f"The training text is too short: it has {len(tokens)} tokens, but a batch of {in_batch} x {length} at "
                f"a random offset needs {(in_batch + 1) * length}; give more text, or lower length or batch_size"
            )
        self._epoch: int | None = None
        self._starts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.windows // (self.batch_size * self.world_size)

    def __getitem__(self, position: int) -> TextBatch:
        epoch, batch = divmod(position, len(self))
        first = (batch * self.world_size + self.rank) * self.batch_size
        return self.gather(self.starts(epoch)[first : first + self.batch_size])

    def starts(self, epoch: int) -> npt.NDArray[np.int64]:
        """First tokens of the windows of an epoch, in the order of training: (windows,)."""
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            self._starts = random.integers(self.length) + self.length * random.permutation(self.windows)
            self._epoch = epoch
        return self._starts


class HeldOutWindows(TokenWindows):
    """The disjoint windows of a held-out split, in order, every one exactly once over all processes.

    The windows are divided as evenly as possible into equally many batches for every process: no window is
    repeated to make the numbers equal, and none is dropped.

    Args:
        tokens: The tokens of the split, unsigned integers (tokens,).
        length: Tokens in a window; the targets are the same tokens one step later.
        batch_size: Most windows in a batch of one process, except where equal numbers of batches need more.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: The split has fewer windows than there are processes.
    """

    def __init__(self, tokens: Tokens, length: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(tokens, length)
        windows = max(0, len(tokens) - 1) // length
        if windows < world_size:
            raise InputError(
                f"The held-out text is too short: it has {len(tokens)} tokens, but a window of {length} for each of "
                f"{world_size} process{'es' * (world_size > 1)} needs {world_size * length + 1}; "
                "give more text, or lower length"
            )
        starts = np.arange(windows, dtype=np.int64) * length
        self.batches = split_into_batches(starts, batch_size, world_size)[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> TextBatch:
        return self.gather(self.batches[index])
