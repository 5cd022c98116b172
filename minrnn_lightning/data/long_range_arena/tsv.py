"""Reading tab-separated files with checks of every line, and detecting that they have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minrnn_lightning.errors import InputError


def read_tsv(file: Path, columns: int, header: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The lines of a tab-separated file: file and line number, for messages, and the columns.

    Args:
        file: The file, in UTF-8.
        columns: Number of columns that a line must have.
        header: Whether the first line holds names instead of data.

    Raises:
        InputError: A line is cut short or not UTF-8, or there is none; the message names the line.
    """
    number = 0
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            location = f"{file}, line {number}"
            try:
                line = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{location} is not UTF-8 (byte {raw[error.start]:#04x}); unpack the file again"
                ) from None
            if header and number == 1:
                continue
            fields = line.split("\t")
            if len(fields) != columns:
                raise InputError(
                    f"{location} has {len(fields)} instead of {columns} columns between tabs; it is cut short or of "
                    "another format: unpack the file again"
                )
            yield location, fields
    if number <= header:
        raise InputError(f"{file} holds no example; unpack the file again")


def file_keys(files: Iterable[Path], advice: str) -> list[Any]:
    """Path, size and modification time of each file, by which a changed file is detected.

    Raises:
        FileNotFoundError: One is missing; the message ends with the advice.
    """
    keys = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {advice}")
        keys.append([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
    return keys
