"""Finding the data files of a folder, and detecting that they have changed since they were read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def visible_files(folder: Path, *endings: str) -> list[Path]:
    """The files of a folder with one of these endings, such as ``.txt``, sorted; none where there is no such folder.

    Hidden files, whose names begin with a dot, are never data: macOS and editors create them next to the real ones.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(endings) and entry.is_file()]
    return sorted(folder / name for name in names if not name.startswith("."))


def digest(files: Iterable[Path]) -> str:
    """A checksum over the paths, sizes and modification times of files, where reading thousands of them would be slow.

    Raises:
        FileNotFoundError: One is missing.
    """
    total = hashlib.sha256()
    for file in files:
        about = file.stat()
        total.update(f"{file}\0{about.st_size}\0{about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
