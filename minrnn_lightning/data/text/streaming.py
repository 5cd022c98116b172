"""Text of the Hugging Face Hub that is read while it is trained on, without being stored."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer, decoders
from torch import Tensor
from torch.utils.data import DataLoader

from minrnn_lightning.batches import TextBatch
from minrnn_lightning.checkpoint import read_tokenizer, tokenizer_of
from minrnn_lightning.data.module import BaseDataModule
from minrnn_lightning.data.text.hub import load_splits
from minrnn_lightning.data.text.shuffled_rows import ShuffledRows, State, StreamedWindows, encode_rows, rows_of
from minrnn_lightning.data.text.tokenizer import byte_tokenizer, token_sizes
from minrnn_lightning.data.text.windows import HeldOutWindows
from minrnn_lightning.errors import InputError, first_line
from minrnn_lightning.memory import check_memory


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
        InputError: An argument is out of range, a file cannot be read, no row has text in that column, or a row has
            characters outside the vocabulary.
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
            return read_tokenizer(Path(self.tokenizer_path).read_text(encoding="utf-8"))
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
