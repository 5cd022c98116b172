"""Any text as windows of tokens, from local files or the Hugging Face Hub; characters, bytes or byte pairs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from minrnn_lightning.batches import TextBatch
from minrnn_lightning.checkpoint import tokenizer_of
from minrnn_lightning.data.download import atomic_folder
from minrnn_lightning.data.module import BaseDataModule, writable
from minrnn_lightning.data.text.cache import LONG, FinishedBlocks, print_cost, with_progress
from minrnn_lightning.data.text.documents import (
    MarkedBlock,
    check_lengths,
    check_occurs,
    check_separator,
    mark_after,
    mark_at,
)
from minrnn_lightning.data.text.files import local_files, path_entries, warn_of_copies
from minrnn_lightning.data.text.hub import hub_name, load_splits, warn_of_shared_rows
from minrnn_lightning.data.text.sources import BLOCK, FileText, RowText, Text, evenly_chosen
from minrnn_lightning.data.text.streams import HeldOutStreams, TrainingStreams
from minrnn_lightning.data.text.tokenizer import (
    BlockEncoder,
    bpe_tokenizer,
    byte_tokenizer,
    char_tokenizer,
    characters_of,
    end_between_pieces,
    token_sizes,
)
from minrnn_lightning.data.text.windows import HeldOutWindows, TrainingWindows
from minrnn_lightning.errors import InputError

_TUNING_SHARE = 0.1  # of the training text, for validation while settings are chosen
_LEARNED = 10**8  # characters from which byte pairs are learned at most, as memory grows with the different words
_FORMAT = 2  # increased whenever the format of the cached files changes, so that older ones are not read


class TextDataModule(BaseDataModule):
    """Text from files or the Hugging Face Hub, cut into windows of tokens for next-token prediction.

    The text is tokenised once, into memory-mapped files that are found again by the text's checksum and the
    vocabulary. A batch is ``TextBatch``, or ``StreamBatch`` with ``stream`` or ``documents``, the targets one token
    ahead. Training uses shuffled disjoint windows, cut at a new offset every epoch; validation, test and prediction use
    the held-out split in order, every window once.

    Files and folders whose name begins with a dot are not data (``.ipynb_checkpoints``, ``._book.txt``), unless
    ``path`` itself names them. Links to files and folders are followed; a file that is found twice is read once. A
    warning names files of the held-out split of which the training split has a copy, and says when a Hub data set's
    splits share documents: the held-out loss would be measured on training text.

    A byte order mark at the beginning of a file is left out; the byte vocabulary keeps every file as
    it is.

    Args:
        path: A text file in UTF-8, a folder (its ``*.txt`` files at any depth), a pattern such as ``books/*.txt`` or
            ``books/**/*.md``, or a list of these; else ``owner/name`` of a data set on the Hugging Face Hub, whose
            rows without text are left out. Documents are joined by a newline.
        tokenizer: Vocabulary: the characters of the text, the 256 bytes, or byte pairs learned from the training split,
            of which they take 100 million evenly chosen characters if it is longer.
        vocab_size: Number of byte pairs with ``bpe``, 256 or more; the others do not need it.
        batch_size: Windows in a batch, per process.
        length: Tokens in a window.
        num_workers: Worker processes that prepare batches, and tokenise the byte pairs of a long text; 0 prepares them
            in the training process.
        data_dir: Folder for the tokenised text; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.
        held_out: Share of the text, its end, for validation and test, where a Hub data set has no such splits itself.
        subset: Configuration of the Hub data set.
        column: Column of the Hub data set that holds the text.
        tuning: Train on the first nine tenths of the training text and validate on its last tenth, to choose settings
            without the held-out split, which takes no part then: not in vocabulary, validation or test, which is
            refused.
        stream: Let every row of a batch continue the same row of the batch before, so that the task carries its state
            from batch to batch, in training and evaluation. ``length`` is then how far back gradients reach.
        documents: What a document is: ``file`` (each file, or each row of a Hub data set), ``line``, or else the text
            that ends one, such as ``<|endoftext|>``. The state is then reset where a document starts, and the last
            token of a document has no target, so that each is trained on as if alone. None for one document.

    Raises:
        InputError: If a size is out of range, ``path`` is empty, a text is empty, not UTF-8 or too short, or
            ``documents`` does not occur in it or leaves nothing to predict.
        FileNotFoundError: If ``path`` does not exist.
    """

    batch_type = TextBatch

    def __init__(
        self,
        path: str | list[str],
        tokenizer: Literal["char", "byte", "bpe"] = "char",
        vocab_size: int = 4096,
        batch_size: int = 64,
        length: int = 256,
        num_workers: int = 0,
        data_dir: str | None = None,
        held_out: float = 0.1,
        subset: str | None = None,
        column: str = "text",
        tuning: bool = False,
        stream: bool = False,
        documents: str | None = None,
    ) -> None:
        super().__init__(batch_size, length, num_workers, data_dir)
        if tokenizer not in ("char", "byte", "bpe"):
            raise InputError(f"tokenizer must be char, byte or bpe, got {tokenizer}")
        if vocab_size < 256:
            raise InputError(f"vocab_size must be at least 256, as byte pairs include the 256 bytes, got {vocab_size}")
        if not 0 < held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, got {held_out}")
        entries = path_entries(path)
        self.path = entries if isinstance(path, (list, tuple)) else entries[0]
        self.vocabulary = tokenizer
        self.vocab_size = int(vocab_size)
        self.held_out = float(held_out)  # plain, as part of the key of the tokenised text
        self.subset = subset
        self.column = column
        self.tuning = bool(tuning)
        self.stream = bool(stream)
        check_separator(documents)
        self.documents = documents

    @property
    def input_size(self) -> int:
        """Number of tokens in the vocabulary; with ``char`` the text is read to count them."""
        return {"byte": 256, "bpe": self.vocab_size}.get(self.vocabulary) or self.tokenizer.get_vocab_size()

    @property
    def output_size(self) -> int:
        """The same as ``input_size``."""
        return self.input_size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary; the text is prepared if that has not happened yet."""
        self.prepare_data()
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def token_sizes(self) -> tuple[Tensor, Tensor]:
        """How many characters begin in each token, and how many bytes of UTF-8 it holds: two of int64 (tokens,)."""
        return token_sizes(self.tokenizer)

    @property
    def corpus(self) -> str:
        """Which text this is, for logs and checkpoints."""
        return self.checksum

    @cached_property
    def sources(self) -> dict[str, Text]:
        """The texts as they come: the split ``train``, and ``validation`` and ``test`` as far as they are separate."""
        as_bytes = self.vocabulary == "byte"
        if name := hub_name(self.path):
            splits = load_splits(name, self.subset, self.column)
            return {split: RowText(name, table, self.column, as_bytes) for split, table in splits.items()}
        return {"train": FileText(self.files(), as_bytes)}

    @cached_property
    def checksum(self) -> str:
        """Checksum of the text."""
        text = self.sources["train"]
        if isinstance(text, FileText) and len(self.sources) == 1:
            self._warn_of_copies(text)
            return text.fingerprint[:16]
        content = json.dumps({split: text.fingerprint for split, text in self.sources.items()}).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    @cached_property
    def folder(self) -> Path:
        """Where the tokenised text is kept: below ``data_dir``, or in the user's cache where that is read-only."""
        vocab_size = self.vocab_size if self.vocabulary == "bpe" else None
        options: list[Any] = ["tuning"] * self.tuning
        options += [] if self.documents is None else [{"documents": self.documents}]
        if self.documents == "file":  # the checksum is that of the joined files
            options += [text.lengths for text in self.sources.values() if isinstance(text, FileText)]
        key = json.dumps([_FORMAT, self.checksum, self.vocabulary, vocab_size, self.held_out, *options])
        return writable(self.data_dir) / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Tokenise the text, unless that was done before."""
        if self.folder.is_dir():
            return
        start = time.perf_counter()
        texts = self.split_texts()
        finished = FinishedBlocks(self.folder.with_name(f"{self.folder.name}.{BLOCK}"))
        with finished.kept():
            try:
                self._tokenise(texts, finished)
            except FileNotFoundError:
                if not self.folder.is_dir():  # else another process was faster and has removed the blocks
                    raise
        print_cost(sum(text.length for text in texts.values()), time.perf_counter() - start)

    def _tokenise(self, texts: dict[str, Text], finished: FinishedBlocks) -> None:
        """Tokenise the blocks of all splits that are not finished, and join them."""
        if self.vocabulary == "bpe":
            tokenizer = finished.tokenizer(lambda: self.learn_tokenizer(texts))
        else:
            tokenizer = self.learn_tokenizer(texts)
        encoder = BlockEncoder(tokenizer, self.vocabulary)
        for name, text in texts.items():
            workers = self.num_workers if self.vocabulary == "bpe" and text.length >= LONG * BLOCK else 0
            blocks = self._marked_blocks(name, texts)
            finished.encode(name, blocks, encoder, self.documents is not None, workers)
        self._save(finished, encoder, list(texts))

    def _marked_blocks(self, name: str, texts: dict[str, Text]) -> Iterator[MarkedBlock]:
        """The blocks of a split, none of which ends within a piece that is tokenised by itself."""
        text = texts[name]
        blocks = with_progress(text.blocks(), text.length, f"Tokenising {name}")
        if self.documents is None:
            marked = mark_at(np.empty(0, np.int64), blocks)
        elif self.documents == "file":
            marked = mark_at(text.starts, blocks)
        else:
            check_occurs(self._document_end, texts["train"], self.path)
            marked = mark_after(self._document_end, blocks)
        return end_between_pieces(marked) if self.vocabulary == "bpe" else marked

    def _save(self, finished: FinishedBlocks, encoder: BlockEncoder, splits: list[str]) -> None:
        """Join the tokenised blocks into the files that are mapped into memory."""
        with atomic_folder(self.folder) as folder:
            encoder.tokenizer.save(str(folder / "tokenizer.json"))
            for name in splits:
                finished.join(name, folder / f"{name}.npy", encoder.dtype)
                if self.documents is not None:
                    finished.join(f"borders-{name}", folder / "borders" / f"{name}.npy", np.bool_)
                    tokens = np.load(folder / f"{name}.npy", mmap_mode="r")
                    borders = np.load(folder / "borders" / f"{name}.npy", mmap_mode="r")
                    end, _ = encoder.encode(self._document_end, np.array([0]))
                    check_lengths(name, tokens, borders, end, self.documents)

    @property
    def _document_end(self) -> str:
        """What ends a document; files and rows are joined by newlines."""
        end = "\n" if self.documents in ("file", "line") else str(self.documents)
        return end.encode().decode("latin-1") if self.vocabulary == "byte" else end

    def learn_tokenizer(self, texts: dict[str, Text]) -> Tokenizer:
        """The vocabulary for a text; byte pairs are learned from its training split only."""
        if self.vocabulary == "byte":
            return byte_tokenizer()
        if self.vocabulary == "char":
            blocks = (with_progress(text.blocks(), text.length, f"Reading {name}") for name, text in texts.items())
            return char_tokenizer(characters_of(chain.from_iterable(blocks)))
        text = texts["train"]
        read = with_progress(text.blocks(), text.length, "Learning byte pairs")
        tokenizer = bpe_tokenizer(evenly_chosen(read, min(1.0, _LEARNED / text.length)), self.vocab_size)
        if tokenizer.get_vocab_size() < self.vocab_size:
            learned = tokenizer.get_vocab_size()
            rank_zero_warn(
                f"The text has only {learned} byte pairs; the others of vocab_size={self.vocab_size} stay unused."
            )
        return tokenizer

    def setup(self, stage: str) -> None:
        """Map the tokenised text into memory and log which text it is."""
        self.splits = {file.stem: np.load(file, mmap_mode="r") for file in self.folder.glob("*.npy")}
        self.borders = {file.stem: np.load(file, mmap_mode="r") for file in self.folder.glob("borders/*.npy")}
        self.save_hyperparameters({"corpus": self.corpus})

    @property
    def parts(self) -> dict[str, list[dict[str, npt.NDArray[Any]]]]:
        """The former name and form of ``splits``, for programs that read it: a row with the tokens of each."""
        return {name: [{"tokens": tokens}] for name, tokens in self.splits.items()}

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled windows of the training split, or streams, cut at a new offset every epoch, in complete batches."""
        tokens, kind = self.splits["train"], TrainingStreams if self.stream else TrainingWindows
        sizes = self.length, self.batch_size, self.global_seed
        return self.loader(kind(tokens, *sizes, *self.processes, self.borders.get("train")), stream=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out windows in order."""
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """The windows of the test split in order; it is the validation split if there is no other.

        Raises:
            InputError: With ``tuning``, which keeps the held-out split for the time after all choices.
        """
        if self.tuning:
            raise InputError(
                "tuning must be false for test and predict: with it, the held-out text is not read; leave it out, or "
                "use validate"
            )
        return self._held_out("test" if "test" in self.splits else "validation")

    def _held_out(self, name: str) -> DataLoader[Any]:
        kind = HeldOutStreams if self.stream else HeldOutWindows
        sizes = self.length, self.batch_size
        return self.loader(kind(self.splits[name], *sizes, *self.processes, self.borders.get(name)))

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary and which text it was, for the checkpoint."""
        return {"tokenizer": self.tokenizer.to_str(), "corpus": self.corpus}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare a checkpoint with these data.

        Raises:
            InputError: If the vocabularies differ, or the checkpoint holds none.
        """
        saved = tokenizer_of({"data": state_dict}).get_vocab()
        if saved != self.tokenizer.get_vocab():
            raise InputError(
                f"The checkpoint has another vocabulary ({len(saved)} tokens) than these data ({self.input_size}); "
                "use the text it was trained on, or fine-tune with init_from"
            )
        if state_dict.get("corpus") != self.corpus:
            rank_zero_warn(
                f"The checkpoint was trained on another text ({state_dict.get('corpus')}) than {self.corpus}."
            )

    def texts(self) -> dict[str, str]:
        """The splits as one string each, for texts that fit into memory; see ``split_texts``."""
        return {name: text.read() for name, text in self.split_texts().items()}

    def split_texts(self) -> dict[str, Text]:
        """The splits of the text: ``train``, ``validation`` and perhaps ``test``; with ``tuning`` the first two.

        For the byte vocabulary one character stands for one byte.

        Raises:
            InputError: The text is empty or, except for the byte vocabulary, not UTF-8.
        """
        texts = self.sources
        if rows := {split: text for split, text in texts.items() if isinstance(text, RowText)}:
            warn_of_shared_rows(rows)
        if texts["train"].is_empty:
            raise InputError(f"{self.path} is empty; give a file with text")
        if "validation" not in texts:
            train, validation = texts["train"].cut(1 - self.held_out)
            texts = {**texts, "train": train, "validation": validation}
        if self.tuning:
            train, validation = texts["train"].cut(1 - _TUNING_SHARE)
            return {"train": train, "validation": validation}
        return texts

    def read(self) -> bytes:
        """The local files as one text, joined by newlines."""
        return self.sources["train"].read().encode("latin-1" if self.vocabulary == "byte" else "utf-8")

    def files(self) -> list[Path]:
        """The local files that hold the text, in order."""
        return local_files(self.path)

    def _warn_of_copies(self, text: FileText) -> None:
        end = text.length
        cut = int((1 - self.held_out) * end)
        if self.tuning:
            cut, end = int((1 - _TUNING_SHARE) * cut), cut
        warn_of_copies(dict(zip(text.files, text.contents, strict=True)), text.lengths, cut, end)
