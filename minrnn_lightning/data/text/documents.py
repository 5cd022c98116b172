"""Where documents start in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.errors import InputError

Starts = npt.NDArray[np.int64]


def starts_after(separator: str, text: str) -> Starts:
    """The documents that end with a separator each: positions of their first characters, ascending from 0."""
    ends = [match.end() for match in re.finditer(re.escape(separator), text)]
    return np.array([0, *(end for end in ends if end < len(text))], dtype=np.int64)


def starts_of(lengths: Iterable[int]) -> Starts:
    """Positions of the first characters of documents of these lengths that are joined by newlines."""
    return np.array(list(accumulate((length + 1 for length in lengths), initial=0))[:-1], dtype=np.int64)


def starts_between(starts: Starts, first: int, end: int) -> Starts:
    """The documents of a part of a text, which begins with one, in positions of the part."""
    return np.unique(np.concatenate([[0], starts[(starts > first) & (starts < end)] - first])).astype(np.int64)


def check_separator(documents: str | None) -> None:
    """Refuse an empty separator.

    Raises:
        InputError: It is empty.
    """
    if documents == "":
        raise InputError("documents must be file, line or the text that ends a document, got an empty text")


def check_occurs(separator: str, texts: dict[str, str], path: Any) -> None:
    """Refuse a separator that a text does not have.

    Raises:
        InputError: It is not in the training split.
    """
    if separator not in texts["train"]:
        raise InputError(
            f"documents must be file, line or the text that ends a document, got {separator!r}, which does not occur "
            f"in {path}"
        )


def check_lengths(split: str, lengths: Sequence[int], empty: int, documents: str) -> None:
    """Refuse documents in which there is nothing to predict, and warn of those of length 0.

    Args:
        split: Name of the split, for messages.
        lengths: Tokens of each document, with what ends it.
        empty: Number of documents that consist of their end alone.
        documents: What a document is, for messages.

    Raises:
        InputError: No document has two tokens.
    """
    if max(lengths) < 2:
        raise InputError(
            f"documents must have a token to predict: with {documents!r}, every document of the split {split} is one "
            "token, which no other follows; give another border, or none"
        )
    if empty:
        rank_zero_warn(
            f"{empty:,} of {len(lengths):,} documents of the split {split} have length 0: only what ends them is read."
        )
