"""Rows of a data set in a shuffled order, and windows of their tokens, from any position on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from torch.utils.data import Dataset

from minrnn_lightning.batches import StreamBatch, TextBatch
from minrnn_lightning.data.text.tokenizer import check_known
from minrnn_lightning.data.text.windows import TokenWindows
from minrnn_lightning.errors import InputError

State = dict[str, Any]
Encoded = tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]  # tokens, and whether a document starts with each


class ShuffledRows:
    """The rows of a data set again and again, each drawn from a buffer of the next ones.

    Args:
        table: Iterable data set of the package ``datasets``, newly opened.
        column: Column of the text; rows without text are left out.
        buffer_size: Rows in the buffer; 1 keeps their order.
        seed: Seed of the draws.
    """

    def __init__(self, table: Any, column: str, buffer_size: int, seed: int) -> None:
        self.table, self.column, self.buffer_size, self.seed = table, column, buffer_size, seed
        self.drawn, self.buffer = 0, list[str]()
        self._start: State = table.state_dict()
        self._begun_at: State | None
        self._begin(self._start)

    def draw(self) -> str:
        """A row.

        Raises:
            InputError: No row has text.
        """
        while len(self.buffer) < self.buffer_size:
            self.buffer.append(self._next())
        index = int(np.random.default_rng((self.seed, self.drawn)).integers(len(self.buffer)))
        self.drawn += 1
        self.buffer[index], row = self.buffer[-1], self.buffer[index]
        self.buffer.pop()
        return row

    def _next(self) -> str:
        for _ in range(2):
            if (row := next(self._rows, None)) is not None:
                self._begun_at = None
                return row
            self._begin(self._start)
        raise InputError(
            f"no row beside those of held_out_rows has text in its column {self.column}; name another column, or lower "
            "held_out_rows"
        )

    def _begin(self, state: State) -> None:
        """Read on from a state of the data set."""
        self.table.load_state_dict(state)
        self._rows = rows_of(self.table, self.column)
        self._begun_at = state  # until a row is read, the data set gives the state before instead

    def state(self) -> State:
        """Where it is, as plain values."""
        rows = self.table.state_dict() if self._begun_at is None else self._begun_at
        return {"rows": rows, "buffer": list(self.buffer), "drawn": self.drawn}

    def load(self, state: State) -> None:
        """Continue from a state."""
        self._begin(state["rows"])
        self.buffer, self.drawn = list(state["buffer"]), state["drawn"]


class StreamedWindows(Dataset[TextBatch | StreamBatch]):
    """An endless stream of batches of consecutive windows of shuffled rows; ``len`` of them are an epoch.

    Every process reads all rows, so that R processes with batches of B read together what one process with batches of
    R·B reads, and that the state of one is that of all.

    Args:
        rows: The rows.
        tokenizer: The vocabulary.
        sizes: Tokens in a window, windows in a batch of one process, batches in an epoch.
        processes: Rank of this process, and number of processes.
        with_borders: Whether the state is reset where a row starts.
    """

    def __init__(
        self,
        rows: ShuffledRows,
        tokenizer: Tokenizer,
        sizes: tuple[int, int, int],
        processes: tuple[int, int] = (0, 1),
        with_borders: bool = False,
    ) -> None:
        self.rows, self.tokenizer, self.with_borders = rows, tokenizer, with_borders
        self.length, self.batch_size, self.batches = sizes
        self.rank, self.world_size = processes
        self.rest: Encoded = encode_rows(tokenizer, iter(()))
        self.position = 0  # of the next batch
        self._start = self._before = self.state()

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, position: int) -> TextBatch | StreamBatch:
        if position < self.position:
            self.load(self._before if position == self._before["position"] else self._start)
        while self.position < position:
            self._next()
        return self._next()

    def _next(self) -> TextBatch | StreamBatch:
        self._before = self.state()
        used = self.world_size * self.batch_size * self.length
        parts = [self.rest]
        missing = used + 1 - len(self.rest[0])
        while missing > 0:
            parts.append(encode_rows(self.tokenizer, iter([self.rows.draw()])))
            missing -= len(parts[-1][0])
        tokens, borders = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self.rest, self.position = (tokens[used:], borders[used:]), self.position + 1
        starts = (self.rank * self.batch_size + np.arange(self.batch_size, dtype=np.int64)) * self.length
        return TokenWindows(tokens, self.length, borders if self.with_borders else None).gather(starts)

    def state(self) -> State:
        """Where it is before the next batch."""
        return {**self.rows.state(), "rest": self.rest, "position": self.position}

    def state_at(self, position: int) -> State | None:
        """Where it was before the batch of this position, if that is the last one that was made or the next."""
        return next((state for state in (self.state(), self._before) if state["position"] == position), None)

    def load(self, state: State) -> None:
        """Continue from a state."""
        self.rows.load(state)
        self.rest, self.position = state["rest"], state["position"]


def rows_of(table: Any, column: str) -> Iterator[str]:
    """The rows of an iterable data set that have text.

    Raises:
        InputError: There is no such column, or it holds something else.
    """
    for row in table:
        if column not in row:
            raise InputError(f"column must be one of {', '.join(row)}, got {column}")
        if isinstance(row[column], str):
            yield row[column]
        elif row[column] is not None:
            raise InputError(
                f"The column {column} holds {type(row[column]).__name__} instead of text; name another of "
                f"{', '.join(row)} with column"
            )


def encode_rows(tokenizer: Tokenizer, rows: Iterator[str]) -> Encoded:
    """The tokens of rows, each of which ends with a newline, and whether a row starts with each.

    Raises:
        InputError: Characters are outside the vocabulary.
    """
    tokens, borders, seen = list[int](), list[bool](), set[str]()
    for row in rows:
        if tokenizer.pre_tokenizer is None:  # others may leave out what separates words
            new = {*row, "\n"} - seen
            check_known(tokenizer, new)
            seen |= new
        found = tokenizer.encode(f"{row}\n", add_special_tokens=False).ids
        tokens += found
        borders += [number == 0 for number in range(len(found))]
    return np.array(tokens, np.min_scalar_type(tokenizer.get_vocab_size() - 1)), np.array(borders, np.bool_)
