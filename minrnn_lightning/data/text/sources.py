"""Texts that are read in blocks, as often as needed, so that one of any size takes little memory."""

from __future__ import annotations

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minrnn_lightning.data.text.tokenizer import Starts, count_characters
from minrnn_lightning.errors import InputError

BLOCK = 1 << 22  # characters, or bytes of a file, that are in memory at a time


class Text(ABC):
    """A text that is read in blocks.

    Attributes:
        length: Its characters; bytes, each of which a character stands for, if it is read as bytes.
        fingerprint: What tells it from other texts.
    """

    length: int
    fingerprint: str

    @abstractmethod
    def read_from(self, position: int) -> tuple[int, Iterator[str]]:
        """Read the text from a character on, or from one before it where that is easier to find.

        Args:
            position: Of the character.

        Returns:
            The position of the first character that is read, and the text from it on in blocks of any size; that raises
            InputError where it is not UTF-8, or no text.
        """

    @property
    @abstractmethod
    def starts(self) -> Starts:
        """Positions of the first characters of its files or rows, ascending from 0."""

    def blocks(self) -> Iterator[str]:
        """The text in blocks of ``BLOCK`` characters, which thus depend on nothing else."""
        return _equal_blocks(self.read_from(0)[1], BLOCK)

    def part(self, first: int, end: int) -> Text:
        """The characters from ``first`` up to ``end``."""
        return _Part(self, first, end)

    def cut(self, *shares: float) -> list[Text]:
        """The parts between borders, each a share of the length."""
        borders = [0, *(int(share * self.length) for share in shares), self.length]
        return [self.part(first, end) for first, end in pairwise(borders)]

    def read(self) -> str:
        """The complete text."""
        return "".join(self.read_from(0)[1])

    @property
    def is_empty(self) -> bool:
        """Whether it has no character."""
        return not any(self.read_from(0)[1])


class _Part(Text):
    """A stretch of another text."""

    def __init__(self, text: Text, first: int, end: int) -> None:
        self.text, self.first, self.end = text, first, end
        self.length = end - first
        self.fingerprint = f"{text.fingerprint} {first} {end}"

    def read_from(self, position: int) -> tuple[int, Iterator[str]]:
        return position, self._read(self.first + position)

    def _read(self, first: int) -> Iterator[str]:
        position, blocks = self.text.read_from(first)
        for block in blocks:
            if position >= self.end:
                return
            yield block[max(first - position, 0) : self.end - position]
            position += len(block)

    @property
    def starts(self) -> Starts:
        """Where its documents start, of which the first may be the rest of one."""
        starts = self.text.starts
        return np.unique(np.append(starts[(starts > self.first) & (starts < self.end)] - self.first, 0))


class _File(NamedTuple):
    """What is known of a file after it was read once.

    Attributes:
        lengths: Characters that begin in each of its blocks of ``BLOCK`` bytes, or bytes.
        content: A checksum of the content where another file has the same size; None for one without text.
    """

    lengths: list[int]
    content: str | None


class FileText(Text):
    """Files, joined by newlines.

    Args:
        files: The files, in UTF-8; a byte order mark at the beginning of each is left out.
        as_bytes: Whether each byte is read as one character, whatever it means; nothing is left out then.
    """

    def __init__(self, files: list[Path], as_bytes: bool = False) -> None:
        self.files, self.as_bytes = files, as_bytes

    @cached_property
    def _summary(self) -> tuple[str, list[_File]]:
        """Checksum of the joined bytes, and the files."""
        total, found = hashlib.sha256(), list[_File]()
        sizes = Counter(file.stat().st_size for file in self.files)
        for file in self.files:
            total.update(b"\n" * bool(found))
            content, lengths, is_blank = hashlib.sha256(), list[int](), True
            hashed = sizes[file.stat().st_size] > 1 or file.stat().st_size < BLOCK
            for number, block in enumerate(_raw_blocks(file)):
                if number == 0 and not self.as_bytes:
                    block = block.removeprefix(codecs.BOM_UTF8)
                total.update(block)
                if hashed:
                    content.update(block)
                lengths.append(len(block) if self.as_bytes else count_characters(block))
                is_blank = is_blank and not block.strip()
            key = content.hexdigest() if hashed else str(file)
            found.append(_File(lengths, None if is_blank else key))
        return total.hexdigest(), found

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """SHA-256 of the joined bytes, hexadecimal."""
        return self._summary[0]

    @property
    def lengths(self) -> list[int]:
        """Characters of each file."""
        return [sum(file.lengths) for file in self._summary[1]]

    @property
    def contents(self) -> list[str | None]:
        """What is equal for files of equal content; None for files without text."""
        return [file.content for file in self._summary[1]]

    @cached_property
    def length(self) -> int:  # type: ignore[override]
        """Characters of all files, and the newlines between them."""
        return sum(self.lengths) + len(self.files) - 1

    @property
    def starts(self) -> Starts:
        """Where its files start."""
        return _starts_of(self.lengths)

    def read_from(self, position: int) -> tuple[int, Iterator[str]]:
        """Read from the block in which the character begins."""
        if position == 0 or not self.length:
            return 0, self._read(0, 0)
        number = int(np.searchsorted(self.starts, position, "right")) - 1
        first = int(self.starts[number])
        ends = first + np.cumsum(self._summary[1][number].lengths)
        block = int(np.searchsorted(ends, position, "right"))
        return int(ends[block - 1]) if block else first, self._read(number, block)

    def _read(self, number: int, block: int) -> Iterator[str]:
        """The files from a block of one of them on, each decoded by itself, so that an error names it."""
        for file in self.files[number:]:
            if self.as_bytes:
                yield from (block.decode("latin-1") for block in _raw_blocks(file, block))
            else:
                yield from _decoded(file, block)
            block = 0
            if file != self.files[-1]:
                yield "\n"


class RowText(Text):
    """Rows with text of a data set of the Hugging Face Hub, joined by newlines; those without text are left out.

    Args:
        name: Name of the data set, for messages.
        table: The split of the data set.
        column: Column of the text.
        as_bytes: As for ``FileText``.
    """

    def __init__(self, name: str, table: Any, column: str, as_bytes: bool = False) -> None:
        self.name, self.table, self.column, self.as_bytes = name, table, column, as_bytes
        self.fingerprint = f"{table._fingerprint} {column}"

    def rows(self) -> Iterator[str]:
        """The rows with text.

        Raises:
            InputError: The column holds something else than text.
        """
        for batch in self.table.select_columns([self.column]).iter(1000):
            for row in batch[self.column]:
                if isinstance(row, str):
                    yield row.encode().decode("latin-1") if self.as_bytes else row
                elif row is not None:
                    raise InputError(
                        f"The column {self.column} of {self.name} holds {type(row).__name__} instead of text; name "
                        f"another of {', '.join(self.table.column_names)} with column"
                    )

    @cached_property
    def lengths(self) -> Starts:
        """Characters of each row, int64 (rows,)."""
        return np.fromiter((len(row) for row in self.rows()), np.int64)

    @cached_property
    def length(self) -> int:  # type: ignore[override]
        """Characters of all rows, and the newlines between them."""
        return int(self.lengths.sum()) + max(len(self.lengths) - 1, 0)

    @property
    def starts(self) -> Starts:
        """Where its rows start."""
        return _starts_of(self.lengths)

    def read_from(self, position: int) -> tuple[int, Iterator[str]]:
        """Read all rows."""
        return 0, (f"\n{row}" if number else row for number, row in enumerate(self.rows()))


def _starts_of(lengths: npt.ArrayLike) -> Starts:
    """Positions of the first characters of texts of these lengths that are joined by newlines."""
    ends = np.cumsum(np.asarray(lengths, np.int64) + 1)
    return np.append(0, ends[:-1])


def _equal_blocks(blocks: Iterable[str], size: int) -> Iterator[str]:
    """The same text in blocks of ``size`` characters, the last of which may be shorter."""
    waiting: list[str] = []
    length = 0
    for block in blocks:
        waiting.append(block)
        length += len(block)
        while length >= size:
            text = "".join(waiting)
            yield text[:size]
            waiting, length = [text[size:]], length - size
    if length:
        yield "".join(waiting)


def evenly_chosen(blocks: Iterable[str], share: float) -> Iterator[str]:
    """About this share of the blocks, at equal distances; all of them if it is 1."""
    return (block for number, block in enumerate(blocks) if int((number + 1) * share) > int(number * share))


def _raw_blocks(file: Path, first: int = 0) -> Iterator[bytes]:
    """The blocks of a file, from this one on."""
    with file.open("rb") as source:
        source.seek(first * BLOCK)
        while block := source.read(BLOCK):
            yield block


def _decoded(file: Path, first: int = 0) -> Iterator[str]:
    """The characters that begin in the blocks of a file in UTF-8, from this one on; without a byte order mark.

    Raises:
        InputError: It is in another encoding, or no text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, zero = first * BLOCK, None

    def refuse(wrong: str) -> InputError:
        return InputError(f"{file} is not text in UTF-8 ({wrong}); convert it, or use tokenizer=byte")

    def decode(block: bytes, final: bool = False) -> str:
        undecoded = len(decoder.getstate()[0])  # the beginning of a character, of the block before
        try:
            return decoder.decode(block, final)
        except UnicodeDecodeError as error:
            at = position - undecoded + error.start
            raise refuse(f"byte {error.object[error.start]:#04x} at position {at}") from None

    for block in _raw_blocks(file, first):
        if position == first * BLOCK and first:
            rest = len(block) - len(block[:3].lstrip(_CONTINUATION)) - len(block[3:])  # of a character before
            block = block[rest:]
            position += rest
        if position == 0:
            for encoding, marks in _OTHER_MARKS.items():
                if block.startswith(marks):
                    raise InputError(
                        f"{file} is text in {encoding} and not in UTF-8; convert it, or use tokenizer=byte"
                    )
        text = decode(block)
        if zero is None and b"\0" in block:
            zero = position + block.index(b"\0")
        if zero is None:
            yield text.removeprefix("\ufeff") if position == 0 else text
        position += len(block)
    decode(b"", final=True)
    if zero is not None:
        raise refuse(f"a zero byte at position {zero}")


_CONTINUATION = bytes(range(0x80, 0xC0))  # the bytes of UTF-8 with which no character begins

# Of UTF-32 first, whose mark begins with that of UTF-16.
_OTHER_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
