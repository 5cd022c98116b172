"""Local text files, found by paths, folders and patterns."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.errors import InputError


def local_files(path: str | list[str]) -> list[Path]:
    """The files that a path, folder or pattern, or a list of these, names: sorted within each entry, each file once.

    A folder is equivalent to the pattern ``folder/**/*.txt``. In patterns, ``**`` means folders at any depth, and what
    begins with a dot is found only by a name or pattern that does so too.

    Raises:
        InputError: If the path, the list or an entry of it is empty.
        FileNotFoundError: If there is none.
    """
    files: dict[Path, Path] = {}
    for entry in path_entries(path):
        named = Path(entry).expanduser()
        if named.is_dir():
            found = _matches(named, ["**", "*.txt"])
        else:
            found = iter([named]) if named.is_file() else _matches(Path(), list(named.parts))
        matches = sorted(file for file in found if file.is_file())
        if not matches:
            reason = "holds no *.txt file" if named.is_dir() else "leads to no file"
            raise FileNotFoundError(f"{entry} {reason}; give a text file, a folder of *.txt files or a pattern")
        for file in matches:
            files.setdefault(file.resolve(), file)
    return list(files.values())


def path_entries(path: str | list[str]) -> list[str]:
    """The path, or the paths of a list, as strings.

    Raises:
        InputError: If one is empty, which would mean the current folder.
    """
    entries = list(path) if isinstance(path, (list, tuple)) else [path]
    if not entries or not all(entry and str(entry).strip() for entry in entries):
        raise InputError(
            f"path must name a text, got {path!r}; give a text file, a folder of *.txt files, a pattern, a data set "
            "of the Hugging Face Hub, or a list of files, folders and patterns"
        )
    return [str(entry) for entry in entries]


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    """Paths below a folder that match the parts of a pattern, in no order, the same file perhaps under several paths.

    ``glob.glob`` loops on links to a parent folder, and ``Path.rglob`` finds hidden files.
    """
    if not parts:
        yield folder
    elif parts[0] == "**":
        for below in _folders(folder):
            yield from _matches(below, parts[1:] or ["*"])
    elif not glob.has_magic(parts[0]):
        yield from _matches(folder / parts[0], parts[1:])
    elif folder.is_dir():
        for name in fnmatch.filter(os.listdir(folder), parts[0]):
            if not name.startswith(".") or parts[0].startswith("."):
                yield from _matches(folder / name, parts[1:])


def _folders(top: Path) -> Iterator[Path]:
    """A folder and all below it that are not hidden, each once; linked folders come last, under their link's path."""
    seen = set()
    waiting = [str(top)]
    while waiting:
        links = []
        for start in waiting:
            for folder, names, _ in os.walk(start):
                real = os.path.realpath(folder)
                names[:] = [] if real in seen else [name for name in names if not name.startswith(".")]
                links += [link for name in names if os.path.islink(link := os.path.join(folder, name))]
                if real not in seen:
                    seen.add(real)
                    yield Path(folder)
        waiting = sorted(links)


def warn_of_copies(contents: dict[Path, str | None], lengths: Sequence[int], cut: int, end: int) -> None:
    """Warn about files in the held-out split that the training split has a copy of.

    Args:
        contents: The files in order, which are joined by newlines, and what is equal for files of equal content; None
            for files without text, which are no copies.
        lengths: The length of each.
        cut: Where the held-out split begins in the joined text, in the unit of the lengths.
        end: Where it ends.
    """
    copies: dict[str | None, list[Path]] = {}
    for file, content in contents.items():
        copies.setdefault(content, []).append(file)
    if len(copies) == len(contents):
        return
    starts = dict(zip(contents, accumulate((length + 1 for length in lengths), initial=0), strict=False))
    ends = {file: starts[file] + length for file, length in zip(contents, lengths, strict=True)}
    pairs = []
    for content, files in copies.items():
        trained = [file for file in files if starts[file] < cut]
        held_out = [file for file in files if starts[file] < end and ends[file] > cut]
        pairs += [(trained[0], file) for file in held_out if trained and file != trained[0] and content]
    if pairs:
        named = "; ".join(f"{held_out} equals {trained}" for trained, held_out in pairs[:10])
        more = f" and {len(pairs) - 10} more" if pairs[10:] else ""
        rank_zero_warn(
            f"The held-out split has copies of files of the training split ({named}{more}), so its loss is too "
            "low; leave the copies out."
        )
