"""Where documents start in a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_warn

from minrnn_lightning.data.text.sources import BLOCK, Text
from minrnn_lightning.data.text.tokenizer import Starts
from minrnn_lightning.errors import InputError

MarkedBlock = tuple[str, Starts]  # a block of text, and the positions in it at which documents start


def mark_after(separator: str, blocks: Iterable[str]) -> Iterator[MarkedBlock]:
    """The same text, with the starts of documents that end with a separator each."""
    rest, starts_next = "", True
    for block in blocks:
        text = rest + block
        ends = [match.end() for match in re.finditer(re.escape(separator), text)]
        # What follows may be the beginning of a separator.
        length = max([len(text) - len(separator) + 1, 0, *ends[-1:]])
        rest = text[length:]
        if length:
            starts = [0] * starts_next + [end for end in ends if end < length]
            yield text[:length], np.array(starts, np.int64)
            starts_next = ends[-1:] == [length]
    if rest:
        yield rest, np.arange(int(starts_next))


def mark_at(starts: Starts, blocks: Iterable[str]) -> Iterator[MarkedBlock]:
    """The same text, with starts at these positions of it."""
    position = 0
    for block in blocks:
        first, end = np.searchsorted(starts, [position, position + len(block)])
        yield block, starts[first:end] - position
        position += len(block)


def check_separator(documents: str | None) -> None:
    """Refuse an empty separator.

    Raises:
        InputError: It is empty.
    """
    if documents == "":
        raise InputError("documents must be file, line or the text that ends a document, got an empty text")


def check_occurs(separator: str, text: Text, path: Any) -> None:
    """Refuse a separator that a text does not have.

    Raises:
        InputError: It is not in the text.
    """
    end = ""
    for block in text.blocks():
        if separator in end + block:
            return
        end = (end + block)[-len(separator) :]
    raise InputError(
        f"documents must be file, line or the text that ends a document, got {separator!r}, which does not occur in "
        f"{path}"
    )


def check_lengths(
    split: str, tokens: npt.NDArray[Any], borders: npt.NDArray[np.bool_], end: npt.NDArray[Any], documents: str
) -> None:
    """Refuse documents in which there is nothing to predict, and warn of those of length 0.

    Args:
        split: Name of the split, for messages.
        tokens: Tokens of the split.
        borders: Whether a document starts with the token, bool (tokens,).
        end: Tokens of what ends a document.
        documents: What a document is, for messages.

    Raises:
        InputError: No document has two tokens.
    """
    longest = count = empty = start = 0
    for first in range(0, len(tokens), BLOCK):
        starts = np.flatnonzero(borders[first : first + BLOCK]) + first
        if first + BLOCK >= len(tokens):
            starts = np.append(starts, len(tokens))
        lengths = np.diff(starts, prepend=start)
        longest = max(longest, int(lengths.max(initial=0)))
        count += int((lengths > 0).sum())
        ended = starts[lengths == len(end)]
        # The first document of all starts at 0, where no other ends: its length here is 0.
        empty += int((tokens[ended[:, None] - np.arange(len(end), 0, -1)] == end).all(1).sum())
        start = int(starts[-1]) if len(starts) else start
    if longest < 2:
        raise InputError(
            f"documents must have a token to predict: with {documents!r}, every document of the split {split} is one "
            "token, which no other follows; give another border, or none"
        )
    if empty:
        rank_zero_warn(
            f"{empty:,} of {count:,} documents of the split {split} have length 0: only what ends them is read."
        )
