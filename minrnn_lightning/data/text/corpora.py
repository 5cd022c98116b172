"""Corpora that language models are compared on: enwik8, text8, WikiText-103 and TinyStories."""

from __future__ import annotations

import shutil
import string
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from tokenizers import Tokenizer
from torch import Tensor

from minrnn_lightning.data.download import atomic_file, download
from minrnn_lightning.data.module import writable
from minrnn_lightning.data.text.module import TextDataModule
from minrnn_lightning.data.text.sources import FileText, Text
from minrnn_lightning.data.text.tokenizer import char_tokenizer, token_contents
from minrnn_lightning.errors import InputError


class Corpus(NamedTuple):
    """What is published of a corpus.

    Attributes:
        files: File of each split below the data folder; one of the training split alone has all of them: its first
            90 % for training, the next 5 % for validation, the last 5 % for the test.
        sha256: Checksums of these files, hexadecimal, in order; none where they are not known.
        downloads: Files to download below the data folder, with address and SHA-256; a zip archive contains the files.
        tokenizer: Vocabulary with which results are published, or byte pairs where that is one of words.
        characters: All characters of the corpus, where they are known.
        is_of_words: Whether every word, and every end of a line, follows a space, and results are by word.
    """

    files: dict[str, str]
    sha256: tuple[str, ...]
    downloads: dict[str, tuple[str, str]]
    tokenizer: Literal["char", "byte", "bpe"]
    characters: str | None = None
    is_of_words: bool = False


_TINY_STORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
)
_TINY_STORIES_SHA256 = (
    "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
    "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
)
_TINY_STORIES_FILES = {
    "train": "TinyStories/TinyStoriesV2-GPT4-train.txt",
    "validation": "TinyStories/TinyStoriesV2-GPT4-valid.txt",
}
CORPORA = {
    "enwik8": Corpus(
        {"train": "enwik8/enwik8"},
        ("2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",),
        {
            "enwik8/enwik8.zip": (
                "http://mattmahoney.net/dc/enwik8.zip",
                "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            )
        },
        "byte",
    ),
    "text8": Corpus(
        {"train": "text8/text8"},
        ("6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",),
        {
            "text8/text8.zip": (
                "http://mattmahoney.net/dc/text8.zip",
                "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            )
        },
        "char",
        characters=" " + string.ascii_lowercase,
    ),
    "wikitext103": Corpus(
        {
            "train": "wikitext-103/wiki.train.tokens",
            "validation": "wikitext-103/wiki.valid.tokens",
            "test": "wikitext-103/wiki.test.tokens",
        },
        (),
        {
            "wikitext-103/wikitext-103-v1.zip": (
                "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-v1.zip",
                "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
            )
        },
        "bpe",
        is_of_words=True,
    ),
    "tinystories": Corpus(
        _TINY_STORIES_FILES,
        _TINY_STORIES_SHA256,
        {
            file: (f"{_TINY_STORIES}/{Path(file).name}", sha256)
            for file, sha256 in zip(_TINY_STORIES_FILES.values(), _TINY_STORIES_SHA256, strict=True)
        },
        "bpe",
    ),
}


class CorpusDataModule(TextDataModule):
    """A published corpus in its standard splits, downloaded where it is missing.

    - ``enwik8``: 100 million bytes of Wikipedia's XML, of which the first 90 are for training, 5 for validation and the
      last 5 for the test; results are bits per byte.
    - ``text8``: 100 million characters of Wikipedia in 27 different ones, split likewise; bits per character.
    - ``wikitext103``: articles of Wikipedia in its three files; ``val/word_perplexity`` is the perplexity by word and
      end of a line, whatever the vocabulary, so that it compares with that of models of words.
    - ``tinystories``: TinyStoriesV2-GPT4, its two files; the test repeats the validation. ``<|endoftext|>`` ends a
      story.

    The files are ``<data_dir>/enwik8/enwik8``, ``text8/text8``, ``wikitext-103/wiki.{train,valid,test}.tokens`` and
    ``TinyStories/TinyStoriesV2-GPT4-{train,valid}.txt``. A file that is not the published one is read too, and a
    warning says so; the hyper-parameter ``corpus`` is the name of the corpus only if all are the published ones, and a
    checksum otherwise.

    Args:
        name: Which corpus.
        tokenizer: As for ``TextDataModule``; by default bytes for enwik8, characters for text8, byte pairs for others.
        vocab_size: As for ``TextDataModule``.
        batch_size: Windows in a batch, per process.
        length: Tokens in a window.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.
        tuning: As for ``TextDataModule``.
        stream: As for ``TextDataModule``.
        documents: As for ``TextDataModule``.

    Raises:
        InputError: An argument is out of range, or a checksum of a download is wrong.
        ConnectionError: A file is missing and cannot be downloaded.

    Sources: http://mattmahoney.net/dc/textdata.html; Merity et al. 2016, https://arxiv.org/abs/1609.07843; Eldan and Li
    2023, https://arxiv.org/abs/2305.07759.
    """

    def __init__(
        self,
        name: Literal["enwik8", "text8", "wikitext103", "tinystories"],
        tokenizer: Literal["char", "byte", "bpe"] | None = None,
        vocab_size: int = 8192,
        batch_size: int = 32,
        length: int = 512,
        num_workers: int = 0,
        data_dir: str | None = None,
        tuning: bool = False,
        stream: bool = False,
        documents: str | None = None,
    ) -> None:
        if name not in CORPORA:
            raise InputError(f"name must be {', '.join(list(CORPORA)[:-1])} or {list(CORPORA)[-1]}, got {name}")
        published = CORPORA[name]
        super().__init__(
            published.files["train"],
            tokenizer or published.tokenizer,
            vocab_size=vocab_size,
            batch_size=batch_size,
            length=length,
            num_workers=num_workers,
            data_dir=data_dir,
            tuning=tuning,
            stream=stream,
            documents=documents,
        )
        self.corpus_name, self.published = name, published

    @property
    def input_size(self) -> int:
        """Number of tokens in the vocabulary, known before the download where that of the corpus is used."""
        characters = self.published.characters
        return len(characters) if characters and self.vocabulary == "char" else super().input_size

    def learn_tokenizer(self, texts: dict[str, Text]) -> Tokenizer:
        """The characters of the corpus where they are known, else as for any text."""
        characters = self.published.characters
        return (
            char_tokenizer(characters) if characters and self.vocabulary == "char" else super().learn_tokenizer(texts)
        )

    @cached_property
    def token_words(self) -> Tensor | None:
        """How many words and ends of lines begin in each token of a corpus of words: int64 (tokens,)."""
        if not self.published.is_of_words:
            return None
        return torch.tensor([content.count(b" ") for content in token_contents(self.tokenizer)])

    @property
    def corpus(self) -> str:
        """The name of the corpus, or the checksum of files that are not the published ones."""
        known = self.published.sha256 and self._differing() == []
        return self.corpus_name if known else self.checksum

    def file(self, name: str) -> Path:
        """The file of this name, below ``data_dir`` or in the user's cache where that is read-only."""
        folder = writable(self.data_dir)
        return next((file for file in (self.data_dir / name, folder / name) if file.is_file()), folder / name)

    def files(self) -> list[Path]:
        """The files of the splits."""
        return [self.file(name) for name in self.published.files.values()]

    @cached_property
    def _texts_of_files(self) -> dict[str, FileText]:
        """Each file as a text."""
        return {
            split: FileText([self.file(name)], self.vocabulary == "byte")
            for split, name in self.published.files.items()
        }

    def _differing(self) -> list[Path]:
        """The files whose checksum is not the published one."""
        texts = list(self._texts_of_files.values())
        checked = zip(texts, self.published.sha256, strict=bool(self.published.sha256))
        return [text.files[0] for text, sha256 in checked if text.fingerprint != sha256]

    @cached_property
    def sources(self) -> dict[str, Text]:
        """The standard splits."""
        for file in self._differing():
            rank_zero_warn(
                f"{file} is not the published {self.corpus_name}: losses are not comparable; delete it to have it "
                "downloaded again."
            )
        texts: dict[str, Text] = dict(self._texts_of_files)
        if list(texts) != ["train"]:
            return texts
        return dict(zip(("train", "validation", "test"), texts["train"].cut(0.9, 0.95), strict=True))

    def prepare_data(self) -> None:
        """Download what is missing, and tokenise it."""
        if not all(file.is_file() for file in self.files()):
            self._fetch()
        super().prepare_data()

    def _fetch(self) -> None:
        """Download the files, or an archive of them, unless that is there."""
        for name, (url, sha256) in self.published.downloads.items():
            file = self.file(name)
            if not file.is_file():
                try:
                    download(url, file, sha256)
                except ConnectionError as error:
                    raise ConnectionError(
                        f"The file {file} is missing and {error}; save {url} under that name, or name the folder that "
                        f"holds {name} with --data.data_dir or MINRNN_DATA_DIR"
                    ) from error
            if file.suffix == ".zip":
                self._unpack(file)

    def _unpack(self, archive: Path) -> None:
        """Write the files of the splits that an archive contains, in whatever folder of it."""
        with zipfile.ZipFile(archive) as contents:
            for target in self.files():
                member = next((name for name in contents.namelist() if Path(name).name == target.name), None)
                if member is None:
                    raise InputError(f"{archive} does not contain {target.name}; delete it to have it downloaded again")
                with contents.open(member) as source, atomic_file(target) as file:
                    shutil.copyfileobj(source, file)
