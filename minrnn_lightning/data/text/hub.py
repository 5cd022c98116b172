"""Text of data sets on the Hugging Face Hub."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.data.text.sources import RowText
from minrnn_lightning.errors import InputError, first_line


def hub_name(path: str | list[str]) -> str | None:
    """The name of the Hub data set that a path means, or None if it means local files."""
    if not isinstance(path, str) or not re.fullmatch(r"[\w-]+/[\w.-]+", path):
        return None
    return None if Path(path).suffix[1:].isalpha() or Path(path).exists() else path


def load_splits(name: str, subset: str | None, column: str, **options: Any) -> dict[str, Any]:
    """The splits ``train``, ``validation`` and ``test`` of a Hub data set, as far as it has them.

    Args:
        name: Name of the data set, ``owner/name``.
        subset: Configuration of the data set.
        column: Column of the text.
        options: Of ``datasets.load_dataset``.

    Raises:
        FileNotFoundError: The Hub does not give the data set.
        InputError: There is no training split, or a split has no such column.
    """
    import datasets  # takes 0.7 s, so only once it is needed

    try:
        found = datasets.load_dataset(name, subset, **options)
    except Exception as error:  # whatever hub, network and data set may raise
        reason = first_line(error)
        raise FileNotFoundError(
            f"{name} is neither a file here nor a data set that the Hugging Face Hub gives ({reason})"
        ) from error
    splits = {split: found[split] for split in ("train", "validation", "test") if split in found}
    for split in {"train": None, **splits}:
        # A data set that is streamed may know its columns only once it is read.
        if split not in splits or column not in (splits[split].column_names or [column]):
            has = "; ".join(f"{split}: {', '.join(table.column_names or [])}" for split, table in found.items())
            raise InputError(f"{name} needs a split {split} with a column {column}, but has {has}")
    return splits


def warn_of_shared_rows(texts: dict[str, RowText]) -> None:
    """Warn when a held-out split shares documents with the training split.

    Args:
        texts: The splits.
    """
    held_out = {split: Counter[int]() for split in texts if split != "train"}  # characters by hash of the row
    for split, characters in held_out.items():
        for row in texts[split].rows():
            characters[hash(row)] += len(row)
    known = set().union(*held_out.values())
    known = {row for row in map(hash, texts["train"].rows()) if row in known} if known else known
    for split, characters in held_out.items():
        # Short rows, such as headings, are equal by chance: what counts is their share of the text.
        copied, length = sum(characters[row] for row in characters if row in known), characters.total()
        if copied > 0.01 * length:
            rank_zero_warn(
                f"{copied / length:.0%} of the split {split} of {texts[split].name} are documents that its split "
                "train has too, so its loss is too low."
            )
