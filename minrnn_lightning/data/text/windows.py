"""Windows of tokens as data sets of batches: shuffled for training, in order for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from minrnn_lightning.batches import IGNORED, StreamBatch, TextBatch
from minrnn_lightning.data.sharding import split_into_batches
from minrnn_lightning.errors import InputError

Tokens = npt.NDArray[np.unsignedinteger[Any]]
Borders = npt.NDArray[np.bool_]


def windows_of(tokens: Tokens, length: int) -> int:
    """The number of disjoint windows with a target for every token."""
    return max(0, len(tokens) - 1) // length


class TokenWindows(Dataset[TextBatch | StreamBatch]):
    """Windows of one array of tokens.

    Args:
        tokens: The tokens, unsigned integers (tokens,).
        length: Tokens in a window; the targets are the same tokens one step later.
        borders: Whether a document starts with the token, bool (tokens,); None for one document.
    """

    def __init__(self, tokens: Tokens, length: int, borders: Borders | None = None) -> None:
        self.tokens, self.length, self.borders = tokens, length, borders

    def gather(self, starts: npt.NDArray[np.int64]) -> TextBatch | StreamBatch:
        """Inputs and targets of the windows that begin at ``starts``: two int64 tensors (windows, length).

        With documents, these and their resets. The last token of a document has no target: its document alone has none.
        """
        views = np.lib.stride_tricks.sliding_window_view(self.tokens, self.length + 1)
        windows = views[starts].astype(np.int64)
        batch = TextBatch(torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(windows[:, 1:].copy()))
        if self.borders is None:
            return batch
        borders = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(self.borders, self.length + 1)[starts])
        batch.targets[borders[:, 1:]] = IGNORED
        return StreamBatch(*batch, reset=borders[:, :-1].contiguous())

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is not forked maps the files itself instead of receiving a copy of their contents.
        mapped = {name: getattr(self.__dict__[name], "filename", None) for name in ("tokens", "borders")}
        return {**self.__dict__, **{name: file for name, file in mapped.items() if file is not None}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in ("tokens", "borders"):
            if isinstance(state[name], (str, Path)):
                setattr(self, name, np.load(state[name], mmap_mode="r"))


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
        borders: Whether a document starts with the token, bool (tokens,); None for one document.

    Raises:
        InputError: The split is too short for one batch.
    """

    def __init__(
        self,
        tokens: Tokens,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        borders: Borders | None = None,
    ) -> None:
        super().__init__(tokens, length, borders)
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

    def __getitem__(self, position: int) -> TextBatch | StreamBatch:
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
        borders: Whether a document starts with the token, bool (tokens,); None for one document.

    Raises:
        InputError: The split has fewer windows than there are processes.
    """

    def __init__(
        self,
        tokens: Tokens,
        length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        borders: Borders | None = None,
    ) -> None:
        super().__init__(tokens, length, borders)
        windows = windows_of(tokens, length)
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

    def __getitem__(self, index: int) -> TextBatch | StreamBatch:
        return self.gather(self.batches[index])
