"""Retrieval of the Long Range Arena: does one of two papers cite the other? Their texts byte by byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minrnn_lightning.data.long_range_arena.module import Example, LabelledDataModule
from minrnn_lightning.data.long_range_arena.tsv import file_keys, read_tsv
from minrnn_lightning.errors import InputError

FILES = {"train": "new_aan_pairs.train.tsv", "validation": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
URL = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
FOLDER = "lra_release/lra_release/tsv_data"


class RetrievalDataModule(LabelledDataModule):
    """Pairs of papers of the ACL Anthology Network, byte by byte: cited or not.

    A line of a file is label, two identifiers and two texts, between tabs. A batch is ``LabelledBatch`` with inputs
    (batch_size, 2, positions). The baseline is the most frequent label.

    Args:
        batch_size: Pairs in a batch, per process.
        length: Bytes of each text that are read.
        path: Folder of ``new_aan_pairs.train.tsv`` and its siblings ``eval`` and ``test``; by default
            ``lra_release/lra_release/tsv_data`` in ``data_dir``.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.

    Raises:
        InputError: A size is out of range or a line of a file is damaged.
        FileNotFoundError: A file is missing.

    Source: Tay et al. 2021, https://arxiv.org/abs/2011.04006; https://github.com/google-research/long-range-arena.
    """

    output_size = 2

    def __init__(
        self,
        batch_size: int = 32,
        length: int = 4000,
        path: str | None = None,
        num_workers: int = 0,
        data_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, length, num_workers, data_dir)
        self.path = Path(path).expanduser() if path else self.data_dir / FOLDER

    def source(self) -> list[Any]:
        """The official files and where their texts are cut."""
        advice = f"unpack {URL} into {self.data_dir}, or give the folder of its tsv_data as path"
        return [self.length, *file_keys((self.path / name for name in FILES.values()), advice)]

    def examples(self) -> dict[str, Iterable[Example]]:
        """The pairs of the three files."""
        return {split: self.read(self.path / name) for split, name in FILES.items()}

    def read(self, file: Path) -> Iterator[Example]:
        """The pairs of a file; an empty text counts as one zero byte.

        Raises:
            InputError: A line is damaged; the message names it.
        """
        for location, (label, _, _, *texts) in read_tsv(file, columns=5):
            if label not in ("0", "1", "0.0", "1.0"):
                raise InputError(f"{location} begins with {label!r} instead of 0 or 1; unpack the file again")
            yield int(float(label)), [text.encode()[: self.length] or b"\0" for text in texts]
