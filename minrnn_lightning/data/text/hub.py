"""Text of data sets on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.errors import InputError, first_line


def hub_name(path: str | list[str]) -> str | None:
    """The name of the Hub data set that a path means, or None if it means local files."""
    if not isinstance(path, str) or not re.fullmatch(r"[\w-]+/[\w.-]+", path):
        return None
    return None if Path(path).suffix[1:].isalpha() or Path(path).exists() else path


def load_splits(name: str, subset: str | None, column: str) -> dict[str, Any]:
    """The splits ``train``, ``validation`` and ``test`` of a Hub data set, as far as it has them.

    Args:
        name: Name of the data set, ``owner/name``.
        subset: Configuration of the data set.
        column: Column of the text.

    Raises:
        FileNotFoundError: The Hub does not give the data set.
        InputError: There is no training split, or a split has no such column.
    """
    import datasets  # takes 0.7 s, so only once it is needed

    try:
        found = datasets.load_dataset(name, subset)
    except Exception as error:  # whatever hub, network and data set may raise
        reason = first_line(error)
        raise FileNotFoundError(
            f"{name} is neither a file here nor a data set that the Hugging Face Hub gives ({reason})"
        ) from error
    splits = {split: found[split] for split in ("train", "validation", "test") if split in found}
    for split in {"train": None, **splits}:
        if split not in splits or column not in splits[split].column_names:
            has = "; ".join(f"{split}: {', '.join(table.column_names)}" for split, table in found.items())
            raise InputError(f"{name} needs a split {split} with a column {column}, but has {has}")
    return splits


def read_rows(name: str, splits: dict[str, Any], column: str) -> dict[str, list[str]]:
    """The rows with text of each split; see ``read_texts``."""
    rows = {}
    for split, table in splits.items():
        rows[split] = [row for row in table[column] if row is not None]
        if other := next((type(row).__name__ for row in rows[split] if not isinstance(row, str)), None):
            raise InputError(
                f"The column {column} of {name} holds {other} instead of text; name another of "
                f"{', '.join(table.column_names)} with column"
            )
    return rows


def read_texts(name: str, splits: dict[str, Any], column: str) -> dict[str, str]:
    """The text of each split, its rows joined by newlines; rows without text are left out.

    A warning says when a held-out split shares documents with the training split.

    Args:
        name: Name of the data set, for messages.
        splits: What ``load_splits`` returned.
        column: Column of the text.

    Raises:
        InputError: The column holds something else than text.
    """
    texts, known = {}, set[str]()
    for split, rows in read_rows(name, splits, column).items():
        if split == "train":
            known = set(rows)
        # Short rows, such as headings, are equal by chance: what counts is their share of the text.
        elif (copied := sum(len(row) for row in rows if row in known)) > 0.01 * sum(map(len, rows)):
            rank_zero_warn(
                f"{copied / sum(map(len, rows)):.0%} of the split {split} of {name} are documents that its split "
                "train has too, so its loss is too low."
            )
        texts[split] = "\n".join(rows)
    return texts
