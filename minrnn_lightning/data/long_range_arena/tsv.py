"""Files of tab-separated values: their lines, checked and with their numbers, and what tells a changed file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minrnn_lightning.errors import InputError


def read_tsv(file: Path, columns: int, header: bool = False) -> Iterator[tuple[str, list[str]]]:
    """The lines of a file of tab-separated values: where it is, for messages, and its columns.

    Args:
        file: In UTF-8.
        columns: How many a line must have.
        header: Whether the first line is none of the data.

    Raises:
        InputError: If a line is cut short or not UTF-8, or there is none; the message names the line.
    """
    number = 0
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            place = f"{file}, line {number}"
            try:
                line = raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{place} is not UTF-8 (byte {raw[error.start]:#04x}); unpack the file again"
                ) from None
            if header and number == 1:
                continue
            fields = line.split("\t")
            if len(fields) != columns:
                raise InputError(
                    f"{place} has {len(fields)} instead of {columns} columns between tabs; it is cut short or of "
                    "another format: unpack the file again"
                )
            yield place, fields
    if number <= header:
        raise InputError(f"{file} holds no example; unpack the file again")


def file_keys(files: Iterable[Path], advice: str) -> list[Any]:
    """Path, size and time of each file: what tells a changed file from the one read before.

    Raises:
        FileNotFoundError: If one is missing; the message ends with the advice.
    """
    keys = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {advice}")
        keys.append([str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns])
    return keys
