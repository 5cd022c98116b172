"""Checkpoints whose tensors are divided among processes: a folder with a file of plain tensors for each process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

SHARD = "rows of this process"  # key of what stands for a tensor whose first dimension is divided


def is_sharded(path: str | Path) -> bool:
    """Whether a path is a checkpoint of this format."""
    return part_of(path, 0).is_file()


def part_of(folder: str | Path, rank: int) -> Path:
    """The file of a process."""
    return Path(folder) / f"part_{rank:05}.pt"


def replace_folder(new: Path, path: Path) -> None:
    """Rename a folder with a complete checkpoint, in place of the file or folder that is there."""
    old = Path(f"{path}.old")
    if path.is_file():
        path.unlink()
    elif path.exists():
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def read_parts(folder: str | Path) -> Any:
    """Read the files of all processes to the CPU, without unpickling code, and join their rows.

    Raises:
        FileNotFoundError: The file of a process is missing.
        ValueError: The files do not fit together.
    """
    first = torch.load(part_of(folder, 0), map_location="cpu", weights_only=True)
    files = [part_of(folder, rank) for rank in range(1, first["processes"])]
    others = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
    return join([each["checkpoint"] for each in (first, *others)])


def join(parts: list[Any]) -> Any:
    """The tree whose parts the processes hold; what is not divided is that of the first one."""
    first = parts[0]
    if isinstance(first, dict) and SHARD in first:
        return torch.cat([part[SHARD] for part in parts])
    if isinstance(first, dict):
        return {key: join([part[key] for part in parts if key in part]) for key in first}
    if isinstance(first, list):
        return [join(list(items)) for items in zip(*parts, strict=True)]
    return first
