"""Any text as windows of tokens, from local files or the Hugging Face Hub; characters, bytes or byte pairs."""

from __future__ import annotations

import codecs
import hashlib
import json
from functools import cached_property
from itertools import pairwise
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
from minrnn_lightning.data.text.documents import (
    Starts,
    check_lengths,
    check_occurs,
    check_separator,
    starts_after,
    starts_between,
    starts_of,
)
from minrnn_lightning.data.text.files import decode_utf8, local_files, path_entries, warn_of_copies
from minrnn_lightning.data.text.hub import hub_name, load_splits, read_rows, read_texts
from minrnn_lightning.data.text.streams import HeldOutStreams, TrainingStreams
from minrnn_lightning.data.text.tokenizer import (
    bpe_tokenizer,
    byte_tokenizer,
    char_tokenizer,
    count_characters,
    token_sizes,
    tokens,
)
from minrnn_lightning.data.text.windows import HeldOutWindows, TrainingWindows
from minrnn_lightning.errors import InputError

_TUNING_SHARE = 0.1  # of the training text, for validation while settings are chosen
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
        tokenizer: Vocabulary: the characters of the text, the 256 bytes, or byte pairs learned from the training split.
        vocab_size: Number of byte pairs with ``bpe``, 256 or more; the others do not need it.
        batch_size: Windows in a batch, per process.
        length: Tokens in a window.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
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
        self._warned_of_copies = False

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
    def checksum(self) -> str:
        """Checksum of the text."""
        if name := hub_name(self.path):
            splits = load_splits(name, self.subset, self.column)
            content = json.dumps({split: table._fingerprint for split, table in splits.items()}).encode()
        else:
            content = self.read()
        return hashlib.sha256(content).hexdigest()[:16]

    @cached_property
    def folder(self) -> Path:
        """Where the tokenised text is kept: below ``data_dir``, or in the user's cache where that is read-only."""
        vocab_size = self.vocab_size if self.vocabulary == "bpe" else None
        options = ["tuning"] * self.tuning + ([] if self.documents is None else [{"documents": self.documents}])
        key = json.dumps([_FORMAT, self.checksum, self.vocabulary, vocab_size, self.held_out, *options])
        return writable(self.data_dir) / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Tokenise the text, unless that was done before."""
        if self.folder.is_dir():
            return
        texts = self.texts()
        tokenizer = self.learn_tokenizer(texts)
        dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
        with atomic_folder(self.folder) as folder:
            tokenizer.save(str(folder / "tokenizer.json"))
            for name, text in texts.items():
                pieces = [text]
                if self.documents is not None:
                    starts = self._document_starts(name, texts)
                    pieces = [text[a:b] for a, b in pairwise([*starts.tolist(), len(text)])]
                if self.vocabulary == "byte":
                    numbers = [np.frombuffer(piece.encode("latin-1"), dtype) for piece in pieces]
                else:
                    numbers = [np.fromiter(tokens(tokenizer, piece), dtype) for piece in pieces]
                np.save(folder / f"{name}.npy", np.concatenate(numbers))
                if self.documents is not None:
                    empty = sum(piece == self._document_end for piece in pieces)
                    check_lengths(name, [len(piece) for piece in numbers], empty, self.documents)
                    (folder / "borders").mkdir(exist_ok=True)
                    borders = [np.arange(len(piece)) == 0 for piece in numbers]
                    np.save(folder / "borders" / f"{name}.npy", np.concatenate(borders))

    @property
    def _document_end(self) -> str:
        """What ends a document; files and rows are joined by newlines."""
        end = "\n" if self.documents in ("file", "line") else str(self.documents)
        return end.encode().decode("latin-1") if self.vocabulary == "byte" else end

    def _document_starts(self, name: str, texts: dict[str, str]) -> Starts:
        """Positions at which the documents of a split start."""
        text = texts[name]
        if self.documents != "file":
            check_occurs(self._document_end, texts, self.path)
            return starts_after(self._document_end, text)
        size = len if self.vocabulary != "byte" else lambda row: len(row.encode())
        if hub := hub_name(self.path):
            rows = read_rows(hub, load_splits(hub, self.subset, self.column), self.column)
            lengths = {split: [size(row) for row in table] for split, table in rows.items()}
        else:
            contents = self._contents().values()
            lengths = {"train": [len(raw) if self.vocabulary == "byte" else count_characters(raw) for raw in contents]}
        own = name in lengths and not self.tuning
        first = 0 if own or name == "train" else len(texts["train"])  # a held-out split was cut off from the end
        return starts_between(starts_of(lengths[name if own else "train"]), first, first + len(text))

    def learn_tokenizer(self, texts: dict[str, str]) -> Tokenizer:
        """The vocabulary for a text; byte pairs are learned from its training split only."""
        if self.vocabulary == "byte":
            return byte_tokenizer()
        if self.vocabulary == "char":
            return char_tokenizer(set().union(*texts.values()))
        tokenizer = bpe_tokenizer(texts["train"], self.vocab_size)
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
        """The splits of the text: ``train``, ``validation`` and perhaps ``test``; with ``tuning`` the first two.

        For the byte vocabulary one character stands for one byte.

        Raises:
            InputError: If the text is empty or, except for the byte vocabulary, not UTF-8.
        """
        if name := hub_name(self.path):
            texts = read_texts(name, load_splits(name, self.subset, self.column), self.column)
            if self.vocabulary == "byte":
                texts = {split: text.encode().decode("latin-1") for split, text in texts.items()}
        else:
            raw = self.read()
            texts = {"train": raw.decode("latin-1") if self.vocabulary == "byte" else self._decode(raw)}
        if not texts["train"]:
            raise InputError(f"{self.path} is empty; give a file with text")
        if "validation" not in texts:
            texts |= _cut(texts["train"], self.held_out)
        return _cut(texts["train"], _TUNING_SHARE) if self.tuning else texts

    def _decode(self, raw: bytes) -> str:
        """The files as text; if one is not in UTF-8, it is named, with the position in it."""
        try:
            return decode_utf8(raw, self.path)
        except InputError:
            for file in self.files():
                decode_utf8(file.read_bytes(), file)
            raise

    def files(self) -> list[Path]:
        """The local files that hold the text, in order."""
        return local_files(self.path)

    def _contents(self) -> dict[Path, bytes]:
        contents = {file: file.read_bytes() for file in self.files()}
        if self.vocabulary == "byte":
            return contents
        return {file: content.removeprefix(codecs.BOM_UTF8) for file, content in contents.items()}

    def read(self) -> bytes:
        """The local files as one text."""
        contents = self._contents()
        if not self._warned_of_copies:
            self._warned_of_copies = True
            lengths = [
                len(content) if self.vocabulary == "byte" else count_characters(content)
                for content in contents.values()
            ]
            end = sum(lengths) + len(lengths) - 1  # with a newline between them
            cut = _position(end, self.held_out)
            if self.tuning:
                cut, end = _position(cut, _TUNING_SHARE), cut
            warn_of_copies(contents, lengths, cut, end)
        return b"\n".join(contents.values())


def _position(length: int, share: float) -> int:
    """Where the last share of a text of that length begins, in characters, or in bytes with ``byte``."""
    return int((1 - share) * length)


def _cut(text: str, share: float) -> dict[str, str]:
    """A text without its last share, and that share."""
    cut = _position(len(text), share)
    return {"train": text[:cut], "validation": text[cut:]}
