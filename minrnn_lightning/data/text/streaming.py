"""Text of the Hugging Face Hub that is read while it is trained on, without being stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer, decoders
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minrnn_lightning.batches import StreamBatch, TextBatch
from minrnn_lightning.checkpoint import tokenizer_of
from minrnn_lightning.data.module import BaseDataModule
from minrnn_lightning.data.text.hub import load_splits
from minrnn_lightning.data.text.tokenizer import byte_tokenizer, token_sizes
from minrnn_lightning.data.text.windows import HeldOutWindows, TokenWindows
from minrnn_lightning.errors import InputError, first_line
from minrnn_lightning.memory import check_memory

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


class StreamingTextDataModule(BaseDataModule):
    """Text of a data set of the Hugging Face Hub that is read while it is trained on, without being stored.

    The rows are drawn from a shuffle buffer, joined by newlines and cut into windows one after the other; after the
    last row comes the first again. A checkpoint has the position in the data set, the buffer and the rest of the last
    row, and a run that resumes from it equals an uninterrupted one.

    The vocabulary is fixed: nothing of the text is known before it is read. Every process reads and tokenises all rows,
    in the training process itself.

    Args:
        path: ``owner/name`` of a data set, or a format such as ``json``, ``parquet`` or ``text``, with ``data_files``.
        tokenizer: ``byte``, or a file ``tokenizer.json`` of the package ``tokenizers``, as ``TextDataModule`` writes it
            beside the tokens.
        batch_size: Windows in a batch, per process.
        length: Tokens in a window.
        num_workers: 0, as the position of another process would not be in the checkpoint.
        data_files: Files or addresses of a format: for the training split, or by the name of the split.
        subset: Configuration of the data set.
        column: Column that holds the text.
        shuffle_buffer: Rows in memory from which the next one is drawn; 1 keeps their order.
        held_out_rows: Rows for validation and test: the first of the split ``validation``, and of the training split,
            which does not have them then, where there is no other.
        batches_per_epoch: Batches that Lightning counts as an epoch.
        documents: Reset the state where a row starts, and give its last token no target, as ``TextDataModule`` does.

    Raises:
        InputError: An argument is out of range, a file cannot be read, or no row has text in that column.
        FileNotFoundError: The data set cannot be reached.
    """

    batch_type = TextBatch

    def __init__(
        self,
        path: str,
        tokenizer: str = "byte",
        batch_size: int = 32,
        length: int = 512,
        num_workers: int = 0,
        data_files: str | list[str] | dict[str, str | list[str]] | None = None,
        subset: str | None = None,
        column: str = "text",
        shuffle_buffer: int = 1000,
        held_out_rows: int = 1000,
        batches_per_epoch: int = 1000,
        documents: bool = False,
    ) -> None:
        super().__init__(batch_size, length, num_workers)
        counts = {"shuffle_buffer": shuffle_buffer, "held_out_rows": held_out_rows}
        for name, value in (counts | {"batches_per_epoch": batches_per_epoch}).items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        check_memory(50 * shuffle_buffer, f"a shuffle_buffer of {shuffle_buffer:,} rows")
        if num_workers:
            raise InputError(f"num_workers must be 0, as the training process reads the stream, got {num_workers}")
        if tokenizer != "byte" and not Path(tokenizer).is_file():
            raise InputError(f"tokenizer must be byte or a file of the package tokenizers, got {tokenizer}")
        self.path, self.tokenizer_path, self.data_files, self.subset = path, tokenizer, data_files, subset
        self.column, self.documents = column, bool(documents)
        self.shuffle_buffer, self.held_out_rows = shuffle_buffer, held_out_rows
        self.batches_per_epoch = batches_per_epoch
        self._windows: StreamedWindows | None = None
        self._stored: State | None = None  # of a checkpoint

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary."""
        if self.tokenizer_path == "byte":
            return byte_tokenizer()
        try:
            return Tokenizer.from_file(self.tokenizer_path)
        except Exception as error:  # of a type of its own
            raise InputError(
                f"tokenizer must be byte or a file of the package tokenizers, got {self.tokenizer_path} "
                f"({first_line(error)})"
            ) from error

    @property
    def input_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.tokenizer.get_vocab_size()

    @property
    def output_size(self) -> int:
        """The same as ``input_size``."""
        return self.input_size

    @property
    def token_sizes(self) -> tuple[Tensor, Tensor] | None:
        """As that of ``TextDataModule``; None for a vocabulary that is not one of bytes."""
        return token_sizes(self.tokenizer) if isinstance(self.tokenizer.decoder, decoders.ByteLevel) else None

    @property
    def corpus(self) -> str:
        """Which rows this is trained on, for logs and checkpoints: the data set, and options that are given."""
        options = self.subset, self.data_files, self.column, self.held_out_rows
        return f"{self.path} {json.dumps(options)}"

    def tables(self) -> dict[str, Any]:
        """The splits ``train`` and ``validation`` as iterable data sets, newly opened."""
        options = {"streaming": True} | ({} if self.data_files is None else {"data_files": self.data_files})
        try:
            splits = load_splits(self.path, self.subset, self.column, **options)
        except FileNotFoundError as error:
            if self.data_files is None:
                raise
            raise InputError(
                f"data_files must be files that the format {self.path} can read, got {self.data_files}: {error}"
            ) from error
        if "validation" in splits:
            return {"train": splits["train"], "validation": splits["validation"].take(self.held_out_rows)}
        train = splits["train"]
        return {"train": train.skip(self.held_out_rows), "validation": train.take(self.held_out_rows)}

    def setup(self, stage: str) -> None:
        """Read the held-out rows."""
        self.held_out = encode_rows(self.tokenizer, rows_of(self.tables()["validation"], self.column))
        self.save_hyperparameters({"corpus": self.corpus})

    def train_dataloader(self) -> DataLoader[Any]:
        """Consecutive windows of shuffled rows."""
        rows = ShuffledRows(self.tables()["train"], self.column, self.shuffle_buffer, self.global_seed)
        sizes = self.length, self.batch_size, self.batches_per_epoch
        self._windows = StreamedWindows(rows, self.tokenizer, sizes, self.processes, self.documents)
        if self._stored is not None:
            self._windows.load(self._stored)
        return self.loader(self._windows, stream=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The windows of the held-out rows, in order."""
        tokens, borders = self.held_out
        sizes = self.length, self.batch_size
        return self.loader(HeldOutWindows(tokens, *sizes, *self.processes, borders if self.documents else None))

    def test_dataloader(self) -> DataLoader[Any]:
        """The same as for validation."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary, and where the stream is, for the checkpoint."""
        state = None if self._windows is None else self._windows.state_at(self.position)
        saved = {"tokenizer": self.tokenizer.to_str(), "corpus": self.corpus}
        if state is None:
            return saved
        return {**saved, "stream": state | {"rest": [torch.from_numpy(array.copy()) for array in state["rest"]]}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the stream of a checkpoint.

        Raises:
            InputError: The vocabularies differ, or the checkpoint holds none.
        """
        if tokenizer_of({"data": state_dict}).get_vocab() != self.tokenizer.get_vocab():
            raise InputError(
                "The checkpoint has another vocabulary than these data; use its tokenizer, or fine-tune with init_from"
            )
        if (saved := state_dict.get("corpus")) != self.corpus:
            rank_zero_warn(
                f"The checkpoint was trained on another text ({saved}) than {self.corpus}: it is begun anew."
            )
        elif "stream" in state_dict:
            stored = state_dict["stream"]
            self._stored = stored | {"rest": tuple(array.numpy() for array in stored["rest"])}


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
    """The tokens of rows, each of which ends with a newline, and whether a row starts with each."""
    tokens, borders = list[int](), list[bool]()
    for row in rows:
        found = tokenizer.encode(f"{row}\n", add_special_tokens=False).ids
        tokens += found
        borders += [number == 0 for number in range(len(found))]
    return np.array(tokens, np.min_scalar_type(tokenizer.get_vocab_size() - 1)), np.array(borders, np.bool_)
