"""Any text as windows of tokens: local files or a Hugging Face data set; characters, bytes or byte pairs."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from minrnn_lightning.data.data import Data, cache_dir
from minrnn_lightning.data.download import whole_folder
from minrnn_lightning.data.tokenizer import bpe_tokenizer, byte_tokenizer, char_tokenizer, encode
from minrnn_lightning.data.windows import HeldOutWindows, TrainingWindows


class TextDataModule(Data):
    """Text of your own, cut into windows of tokens for next-token prediction.

    The text is tokenised once, into an Arrow file in the user's cache folder that is mapped into memory; the key is
    the text and the vocabulary, so changed files are noticed. A batch is ``(inputs, targets)``, int64
    (batch_size, length), the targets one step ahead. Validation, test and prediction go over the held-out part once,
    in disjoint windows.

    Args:
        path: Text file, folder (its ``*.txt`` files), pattern such as ``books/*.txt``, or a list of these, in UTF-8;
            else ``owner/name`` of a data set on the Hugging Face Hub. Documents are joined by a newline.
        tokenizer: Vocabulary: the characters of the text, the 256 bytes, or byte pairs learned from the training part.
        vocab_size: Number of byte pairs, at least 256; for ``bpe`` only.
        batch_size: Windows in a batch, per process.
        length: Tokens in a window.
        num_workers: Processes that prepare batches beside the training; 0 prepares them inside it.
        data_dir: Folder that a relative ``path`` may also be in; by default ``$MINRNN_DATA_DIR``, else
            the user's cache folder.
        held_out: Share of the text, its end, kept for validation and test; a Hub data set's own parts come first.
        subset: Configuration of a Hub data set.
        column: Column of a Hub data set that holds the text.

    Raises:
        ValueError: If a size is out of range, or a text is empty, no UTF-8 or too short for one batch.
        FileNotFoundError: If ``path`` leads to no file.
    """

    def __init__(
        self,
        path: str | list[str],
        tokenizer: Literal["char", "byte", "bpe"] = "char",
        vocab_size: int = 4096,
        batch_size: int = 64,
        length: int = 256,
        num_workers: int = 0,
        data_dir: str | None = None,
        held_out: float = 0.1,
        subset: str | None = None,
        column: str = "text",
    ) -> None:
        super().__init__(batch_size, length, num_workers, data_dir)
        if tokenizer not in ("char", "byte", "bpe"):
            raise ValueError(f"tokenizer must be char, byte or bpe, got {tokenizer}.")
        if vocab_size < 256:
            raise ValueError(f"vocab_size must be 256 or more, because byte pairs are built on the 256 bytes, got {vocab_size}.")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {held_out}.")
        self.path = [path] if isinstance(path, str) else path
        self.vocabulary = tokenizer
        self.vocab_size = vocab_size
        self.held_out = held_out
        self.subset = subset
        self.column = column
