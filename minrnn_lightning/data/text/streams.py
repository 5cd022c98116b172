"""Streams of tokens as data sets of batches: every row of a batch continues the same row of the batch before."""

from __future__ import annotations

import numpy as np

from minrnn_lightning.batches import IGNORED, StreamBatch
from minrnn_lightning.data.text.windows import Borders, Tokens, TokenWindows, TrainingWindows, windows_of
from minrnn_lightning.errors import InputError


class TrainingStreams(TrainingWindows):
    """An endless stream of batches, each row of which reads one contiguous part of the text; ``len`` are a pass.

    A pass cuts the text into as many equal parts as there are rows in the batches of all processes, at a random offset
    that depends on seed and pass only, and every row reads its part from the beginning. The rows are divided among the
    processes in order: R processes with batches of B read together what one process with batches of R·B reads.

    The arguments and errors are those of ``TrainingWindows``, and so is the number of batches.
    """

    def __getitem__(self, position: int) -> StreamBatch:
        number, batch = divmod(position, len(self))
        rows = self.rank * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        starts = self.offset(number) + (rows * len(self) + batch) * self.length
        return StreamBatch(*self.gather(starts))._replace(continues=batch > 0)

    def offset(self, number: int) -> int:
        """First token of a pass; what the rows leave out is at the beginning and at the end of the text."""
        used = self.world_size * self.batch_size * len(self) * self.length
        return int(np.random.default_rng((self.seed, number)).integers(len(self.tokens) - used))


class HeldOutStreams(TokenWindows):
    """A held-out split read in contiguous parts, one for each row of the batches of all processes.

    The windows are those of ``HeldOutWindows``, each exactly once over all processes. The parts differ by one window at
    most; in the last batch, a row whose part has ended is padding without targets.

    Args:
        tokens: The tokens of the split, unsigned integers (tokens,).
        length: Tokens in a window; the targets are the same tokens one step later.
        batch_size: Rows in a batch of one process.
        rank: Rank of this process.
        world_size: Number of processes.
        borders: Whether a document starts with the token, bool (tokens,); None for one document.

    Raises:
        InputError: The split has fewer windows than there are rows.
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
        windows, rows = windows_of(tokens, length), batch_size * world_size
        if windows < rows:
            raise InputError(
                f"The held-out text is too short for streams: it has {len(tokens)} tokens, but a window of {length} in "
                f"each of {rows} rows needs {rows * length + 1}; give more text, or lower length or batch_size"
            )
        ends = np.arange(rows + 1, dtype=np.int64) * windows // rows  # of the parts, in windows
        mine = slice(rank * batch_size, (rank + 1) * batch_size)
        self.first, self.counts = ends[:-1][mine], np.diff(ends)[mine]
        self.batches = -(-windows // rows)

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> StreamBatch:
        ended = index >= self.counts
        batch = self.gather((self.first + np.where(ended, 0, index)) * self.length)
        batch.targets[ended.nonzero()[0]] = IGNORED
        return StreamBatch(*batch)._replace(continues=index > 0)
