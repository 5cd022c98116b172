"""Text classification of the Long Range Arena: film reviews, byte by byte, positive or negative."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minrnn_lightning.data.folders import digest, visible_files
from minrnn_lightning.data.long_range_arena.module import Example, LabelledDataModule
from minrnn_lightning.errors import InputError

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
LABELS = ("neg", "pos")


class IMDBDataModule(LabelledDataModule):
    """Film reviews of IMDb, byte by byte: 25,000 for training and 25,000 for the test, half of them positive.

    There is no validation split: by convention the test split is used for both, so that the checkpoint that is best in
    validation is best in the test too. The baseline is the most frequent label.

    Args:
        batch_size: Reviews in a batch, per process.
        length: Bytes of each review that are read.
        path: The unpacked folder ``aclImdb``; by default that in ``data_dir``.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.

    Raises:
        InputError: A size is out of range or a review is empty or not UTF-8.
        FileNotFoundError: The reviews are missing.

    Source: Maas et al. 2011, https://ai.stanford.edu/~amaas/data/sentiment/; the task is that of Tay et al. 2021,
    https://arxiv.org/abs/2011.04006.
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
        self.path = Path(path).expanduser() if path else self.data_dir / "aclImdb"

    def files(self, split: str) -> list[tuple[int, Path]]:
        """Labels and reviews of ``train`` or ``test``.

        Raises:
            FileNotFoundError: There is none of a label.
        """
        found = []
        for label, name in enumerate(LABELS):
            files = visible_files(self.path / split / name, ".txt")
            if not files:
                raise FileNotFoundError(
                    f"{self.path}/{split}/{name} holds no review; unpack {URL} into {self.data_dir}, or give its "
                    "folder aclImdb as path"
                )
            found += [(label, file) for file in files]
        return found

    def source(self) -> list[Any]:
        """The reviews, and where they are cut."""
        files = (file for split in ("train", "test") for _, file in self.files(split))
        return [self.length, str(self.path.resolve()), digest(files)]

    def examples(self) -> dict[str, Iterable[Example]]:
        """The reviews."""
        return {name: self.read(name if name == "train" else "test") for name in ("train", "validation", "test")}

    def read(self, split: str) -> Iterator[Example]:
        """The reviews of ``train`` or ``test``.

        Raises:
            InputError: One is empty or not UTF-8.
        """
        for label, file in self.files(split):
            review = file.read_bytes()
            try:
                review.decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{file} is not UTF-8 (byte {review[error.start]:#04x}); unpack {URL} again") from None
            if not review:
                raise InputError(f"{file} is empty; unpack {URL} again")
            yield label, [review[: self.length]]
