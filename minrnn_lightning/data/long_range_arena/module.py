"""Labelled sequences: read once into memory-mapped files, shuffled for training, in order for evaluation."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from minrnn_lightning.batches import LabelledBatch
from minrnn_lightning.checkpoint import plain
from minrnn_lightning.data.download import atomic_folder
from minrnn_lightning.data.module import BaseDataModule, writable
from minrnn_lightning.data.sharding import split_into_batches
from minrnn_lightning.errors import InputError

POOL = 16  # batches that are sorted by length together, so that little of a batch is padding
_FORMAT = 1  # increased whenever the format of the cached files changes, so that older ones are not read


Example = tuple[int, list[bytes]]  # a label, and one sequence of tokens below 256 or two


class Split(NamedTuple):
    """The examples of a split.

    Attributes:
        tokens: The tokens of all sequences, concatenated: uint8 (tokens,).
        ends: One past the last token of each sequence, int64 (sequences,); an example has one sequence or two.
        labels: int64 (examples,).
    """

    tokens: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path, name: str) -> Split:
        """The split of this name, memory-mapped."""
        return cls(*(np.load(folder / f"{name}_{field}.npy", mmap_mode="r") for field in cls._fields))

    @classmethod
    def write(cls, folder: Path, name: str, examples: Iterable[Example]) -> None:
        """Save examples as the split of this name."""
        labels, lengths = [], []
        with (folder / "tokens").open("wb") as file:
            for label, sequences in examples:
                labels.append(label)
                for sequence in sequences:
                    lengths.append(len(sequence))
                    file.write(sequence)
        tokens = np.fromfile(folder / "tokens", dtype=np.uint8)
        (folder / "tokens").unlink()
        for field, array in zip(cls._fields, (tokens, np.cumsum(lengths), np.array(labels)), strict=True):
            np.save(folder / f"{name}_{field}.npy", array)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Length of each sequence: (examples, sequences of an example)."""
        return np.diff(self.ends, prepend=0).reshape(len(self.labels), -1)

    def sequences(self, indices: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.uint8]]:
        """The sequences of the examples with these indices."""
        width = len(self.ends) // len(self.labels)
        for sequence in (indices[:, None] * width + np.arange(width)).ravel():
            yield self.tokens[self.ends[sequence - 1] if sequence else 0 : self.ends[sequence]]

    def batch(self, indices: npt.NDArray[np.int64]) -> LabelledBatch:
        """A batch of the examples with these indices."""
        sequences = list(self.sequences(indices))
        inputs = np.zeros((len(sequences), max(map(len, sequences))), dtype=np.int64)
        for row, sequence in zip(inputs, sequences, strict=True):
            row[: len(sequence)] = sequence
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        tokens, labels = torch.from_numpy(inputs), torch.from_numpy(self.labels[indices])
        if len(sequences) == len(indices):
            return LabelledBatch(tokens, labels, lengths)
        return LabelledBatch(tokens.view(len(indices), 2, -1), labels, lengths.view(len(indices), 2))


class TrainingSequences(Dataset[LabelledBatch]):
    """An endless stream of shuffled batches; ``len`` of them are an epoch, in which no example is repeated.

    Examples of similar length share a batch: among every 16 batches the examples are sorted, and the batches shuffled.
    A batch depends on seed and position alone, and is divided among the processes.

    Args:
        split: The examples.
        batch_size: Examples in a batch of one process; examples that do not fill a batch of all processes are left out.
        seed: Seed of the stream.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: There are fewer examples than in a batch.
    """

    def __init__(self, split: Split, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        self.split, self.batch_size, self.seed, self.rank = split, batch_size, seed, rank
        self.in_batch = batch_size * world_size
        if len(split.labels) < self.in_batch:
            raise InputError(
                f"The training split has {len(split.labels)} examples, too few for a batch of {self.in_batch}; lower "
                "batch_size"
            )
        self._epoch: int | None = None
        self._batches = np.empty((0, 0), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.split.labels) // self.in_batch

    def __getitem__(self, position: int) -> LabelledBatch:
        epoch, batch = divmod(position, len(self))
        first = self.rank * self.batch_size
        return self.split.batch(self.batches(epoch)[batch, first : first + self.batch_size])

    def batches(self, epoch: int) -> npt.NDArray[np.int64]:
        """The examples of each batch of an epoch: (batches, examples in a batch of all processes)."""
        if epoch != self._epoch:
            random = np.random.default_rng((self.seed, epoch))
            order = random.permutation(len(self.split.labels))[: len(self) * self.in_batch]
            lengths = self.split.lengths.max(axis=1)
            pools = np.split(order, range(POOL * self.in_batch, len(order), POOL * self.in_batch))
            order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
            self._batches = random.permutation(order.reshape(len(self), self.in_batch))
            self._epoch = epoch
        return self._batches


class HeldOutSequences(Dataset[LabelledBatch]):
    """The examples of a held-out split, every one exactly once over all processes.

    Examples of similar length share a batch; the batches are in a fixed random order, so that the first of them are a
    representative sample.

    Args:
        split: The examples.
        batch_size: Most examples in a batch of one process, except where equal numbers of batches need more.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: There are fewer examples than processes.
    """

    def __init__(self, split: Split, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        examples = len(split.labels)
        if examples < world_size:
            raise InputError(f"The held-out split has {examples} examples, too few for {world_size} processes")
        self.split = split
        order = np.argsort(split.lengths.max(axis=1), kind="stable")
        batches = split_into_batches(order, batch_size, world_size)
        chosen = np.random.default_rng(0).permutation(len(batches))[rank::world_size]
        self.batches = [batches[index] for index in chosen]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> LabelledBatch:
        return self.split.batch(self.batches[index])


class LabelledDataModule(BaseDataModule):
    """Labelled sequences of tokens; subclasses define the examples.

    Args:
        batch_size: Examples in a batch, per process.
        length: The longest sequence.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        data_dir: Folder of the data sets; by default ``$MINRNN_DATA_DIR``, else ``~/.cache/minrnn_lightning``.
    """

    batch_type = LabelledBatch
    input_size = 256

    @abstractmethod
    def source(self) -> list[Any]:
        """What the examples depend on, as plain values: the key of the files in the cache.

        Raises:
            FileNotFoundError: The files to read from are missing.
        """

    @abstractmethod
    def examples(self) -> dict[str, Iterable[Example]]:
        """The splits ``train``, ``validation`` and ``test``."""

    @property
    def chance(self) -> float:
        """One over the number of classes."""
        return 1 / self.output_size

    def clues(self, split: Split) -> npt.NDArray[Any]:
        """Feature of each example on which the baseline depends, below 256: none."""
        return np.zeros(len(split.labels), dtype=np.int64)

    @cached_property
    def baseline(self) -> float:
        """Accuracy on the test split of the most frequent training label, for each value of ``clues``."""
        train, test = Split.read(self.folder, "train"), Split.read(self.folder, "test")
        table = np.zeros((256, self.output_size), dtype=np.int64)
        np.add.at(table, (self.clues(train), train.labels), 1)
        return float(np.mean(table.argmax(axis=1)[self.clues(test)] == test.labels))

    @cached_property
    def folder(self) -> Path:
        """Where the examples are kept: below ``data_dir``, or in the user's cache where that is read-only."""
        key = json.dumps(plain([_FORMAT, type(self).__name__, self.source()], "source"))
        return writable(self.data_dir) / "sequences" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def prepare_data(self) -> None:
        """Read or make the examples, unless that was done before."""
        if not self.folder.is_dir():
            with atomic_folder(self.folder) as folder:
                for name, examples in self.examples().items():
                    Split.write(folder, name, examples)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled examples; batches that are not full are left out."""
        split = Split.read(self.folder, "train")
        return self.loader(TrainingSequences(split, self.batch_size, self.global_seed, *self.processes), stream=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation split, every example once."""
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test split, every example once."""
        return self._held_out("test")

    def _held_out(self, name: str) -> DataLoader[Any]:
        return self.loader(HeldOutSequences(Split.read(self.folder, name), self.batch_size, *self.processes))
