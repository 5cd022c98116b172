"""Any text as windows of tokens: local files or a Hugging Face data set; characters, bytes or byte pairs."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from minrnn_lightning.data.data import Data, writable
from minrnn_lightning.data.download import whole_folder
from minrnn_lightning.data.tokenizer import bpe_tokenizer, byte_tokenizer, char_tokenizer, tokens
from minrnn_lightning.data.windows import HeldOutWindows, TrainingWindows

_FORMAT = 1  # to be raised when the files below change, so that files written before are not taken for them


class TextDataModule(Data):
    """Text of your own, cut into windows of tokens for next-token prediction.

    The text is tokenised once, into a memory-mapped Arrow file that is found again by the text's checksum and the
    vocabulary. A batch is ``(inputs, targets)``, int64 (batch_size, length), the targets one token ahead. Training
    goes over the text in shuffled disjoint windows, cut anew every epoch; validation, test and prediction go over
    the held-out part in order, every window once.

    Args:
        path: A text file in UTF-8, a folder (its ``*.txt`` files), a pattern such as ``books/*.txt``, or a list of
            these; else ``owner/name`` of a data set on the Hugging Face Hub. Documents are joined by a newline.
        tokenizer: Vocabulary: the characters of the text, the 256 bytes, or byte pairs learned from the training part.
        vocab_size: Number of byte pairs with ``bpe``, 256 or more; the others do not need it.
        batch_size: Windows in a batch, per process.
        length: Tokens in a window.
        num_workers: Processes that prepare batches beside the training; 0 prepares them inside it.
        data_dir: Folder for the tokenised text; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.
        held_out: Share of the text, its end, for validation and test, where a Hub data set has no such parts itself.
        subset: Configuration of the Hub data set.
        column: Column of the Hub data set that holds the text.

    Raises:
        ValueError: If a size is out of range, or a text is empty, not UTF-8 or too short.
        FileNotFoundError: If ``path`` leads nowhere.
    """

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
    ) -> None:
        super().__init__(batch_size, length, num_workers, data_dir)
        if tokenizer not in ("char", "byte", "bpe"):
            raise ValueError(f"tokenizer must be char, byte or bpe, got {tokenizer}.")
        if vocab_size < 256:
            raise ValueError(f"vocab_size must be 256 or more, as byte pairs include the 256 bytes, got {vocab_size}.")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {held_out}.")
        self.path = str(path) if isinstance(path, Path) else path
        self.vocabulary = tokenizer
        self.vocab_size = vocab_size
        self.held_out = held_out
        self.subset = subset
        self.column = column

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

    @property
    def corpus(self) -> str:
        """Which text this is, for logs and checkpoints."""
        return self.checksum

    @cached_property
    def checksum(self) -> str:
        """Checksum of the text."""
        if name := self._hub_name():
            content = json.dumps({split: part._fingerprint for split, part in self._hub(name).items()}).encode()
        else:
            content = self.read()
        return hashlib.sha256(content).hexdigest()[:16]

    @cached_property
    def folder(self) -> Path:
        """Where the tokenised text is kept: below ``data_dir``, or in the user's cache where that is read-only."""
        vocab_size = self.vocab_size if self.vocabulary == "bpe" else None
        key = json.dumps([_FORMAT, self.checksum, self.vocabulary, vocab_size, self.held_out])
        return writable(self.data_dir) / "tokens" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Tokenise the text, unless that was done before."""
        if self.folder.is_dir():
            return
        import pyarrow as pa  # type: ignore[import-untyped]

        texts = self.texts()
        tokenizer = self.learn_tokenizer(texts)
        dtype = np.min_scalar_type(tokenizer.get_vocab_size() - 1)
        with whole_folder(self.folder) as folder:
            tokenizer.save(str(folder / "tokenizer.json"))
            for name, text in texts.items():
                if self.vocabulary == "byte":
                    numbers = np.frombuffer(text.encode("latin-1"), dtype)
                else:
                    numbers = np.fromiter(tokens(tokenizer, text), dtype)
                # All in one row, hence one piece of memory; the offsets of a large list have 64 bits.
                row = pa.LargeListArray.from_arrays([0, len(numbers)], pa.array(numbers))
                table = pa.table({"tokens": row})
                with (
                    pa.OSFile(str(folder / f"{name}.arrow"), "wb") as file,
                    pa.ipc.new_stream(file, table.schema) as out,
                ):
                    out.write_table(table)

    def learn_tokenizer(self, texts: dict[str, str]) -> Tokenizer:
        """The vocabulary for a text; byte pairs are learned from its training part only."""
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
        import datasets  # takes 0.7 s, so only once it is needed

        self.parts = {file.stem: datasets.Dataset.from_file(str(file)) for file in self.folder.glob("*.arrow")}
        self.save_hyperparameters({"corpus": self.corpus})

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled windows of the training part, cut anew every epoch; batches that are not full are left out."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        windows = TrainingWindows(self.parts["train"], self.length, self.batch_size, seed, *self.processes)
        return self.loader(windows, stream=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out windows in order."""
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """The windows of the test part in order; it is the validation part if there is no other."""
        return self._held_out("test" if "test" in self.parts else "validation")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The same as for the test."""
        return self.test_dataloader()

    def _held_out(self, name: str) -> DataLoader[Any]:
        return self.loader(HeldOutWindows(self.parts[name], self.length, self.batch_size, *self.processes))

    def state_dict(self) -> dict[str, Any]:
        """The vocabulary and which text it was, for the checkpoint."""
        return {"tokenizer": self.tokenizer.to_str(), "corpus": self.corpus}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare a checkpoint with these data.

        Raises:
            ValueError: If the vocabularies differ.
        """
        saved = Tokenizer.from_str(state_dict["tokenizer"]).get_vocab()
        if saved != self.tokenizer.get_vocab():
            raise ValueError(
                f"The checkpoint has another vocabulary ({len(saved)} tokens) than these data ({self.input_size}); "
                "use the text it was trained on, or fine-tune with init_from."
            )
        if state_dict["corpus"] != self.corpus:
            rank_zero_warn(f"The checkpoint was trained on another text ({state_dict['corpus']}) than {self.corpus}.")

    def texts(self) -> dict[str, str]:
        """The parts of the text: ``train``, ``validation`` and perhaps ``test``.

        For the byte vocabulary one character stands for one byte.

        Raises:
            ValueError: If the text is empty or, except for the byte vocabulary, not UTF-8.
        """
        if name := self._hub_name():
            texts = {split: "\n".join(part[self.column]) for split, part in self._hub(name).items()}
            if self.vocabulary == "byte":
                texts = {split: text.encode().decode("latin-1") for split, text in texts.items()}
        else:
            raw = self.read()
            texts = {"train": raw.decode("latin-1") if self.vocabulary == "byte" else self._decode(raw)}
        if not texts["train"]:
            raise ValueError(f"{self.path} is empty; give a file with text.")
        if "validation" not in texts:
            text = texts["train"]
            cut = int((1 - self.held_out) * len(text))
            texts |= {"train": text[:cut], "validation": text[cut:]}
        return texts

    def _decode(self, raw: bytes) -> str:
        """Bytes as text, unless they are something else."""
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            text, wrong = "", f"byte {raw[error.start]:#04x} at position {error.start}"
        else:
            wrong = "a zero byte" if "\0" in text else ""
        if wrong:
            raise ValueError(f"{self.path} is not text in UTF-8 ({wrong}); convert it, or use tokenizer=byte.")
        return text

    def read(self) -> bytes:
        """The local files as one text."""
        return b"\n".join(file.read_bytes() for file in local_files(self.path))

    def _hub_name(self) -> str | None:
        """Name of the Hugging Face data set, or None if the text is in local files."""
        path = self.path
        is_name = (
            isinstance(path, str) and re.fullmatch(r"[\w-]+/[\w.-]+", path) and not Path(path).suffix[1:].isalpha()
        )
        return str(path) if is_name and not Path(str(path)).exists() else None

    def _hub(self, name: str) -> dict[str, Any]:
        """The parts of a Hugging Face data set."""
        import datasets

        try:
            found = datasets.load_dataset(name, self.subset)
        except Exception as error:  # whatever hub, network and data set may raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise FileNotFoundError(
                f"{name} is neither a file here nor a data set that the Hugging Face Hub gives ({reason})."
            ) from error
        parts = {split: found[split] for split in ("train", "validation", "test") if split in found}
        if "train" not in parts or self.column not in parts["train"].column_names:
            has = "; ".join(f"{split}: {', '.join(part.column_names)}" for split, part in found.items())
            raise ValueError(f"{name} needs a part train with a column {self.column}, but has {has}.")
        return parts


def local_files(path: str | list[str]) -> list[Path]:
    """The files that a path, folder or pattern, or a list of these, stands for, sorted within each.

    Raises:
        FileNotFoundError: If there is none.
    """
    files: list[Path] = []
    candidates: Iterable[Path]
    for entry in [path] if isinstance(path, str) else path:
        place = Path(entry).expanduser()
        if place.is_dir():
            candidates = place.rglob("*.txt")
        else:
            candidates = [place] if place.is_file() else map(Path, glob.glob(str(place), recursive=True))
        found = sorted(file for file in candidates if file.is_file())
        if not found:
            what = "holds no *.txt file" if place.is_dir() else "leads to no file"
            raise FileNotFoundError(f"{entry} {what}; give a text file, a folder of *.txt files or a pattern.")
        files += found
    return files
