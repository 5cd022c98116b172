"""Examples made by a rule: an endless training stream, fixed held-out sets, and how far a blind guess gets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from minrnn_lightning.batches import AnswerBatch
from minrnn_lightning.data.module import BaseDataModule
from minrnn_lightning.data.synthetic.batches import Rule, blind_accuracy, concatenate
from minrnn_lightning.errors import InputError

TRAINING, VALIDATION, TEST, BASELINE = range(4)  # each has random numbers of its own


class TrainingExamples(Dataset[AnswerBatch]):
    """An endless stream of batches; ``len`` of them are an epoch.

    The batch at a position depends on the seed, the position and the rank alone.

    Args:
        rule: Makes a batch.
        batch_size: Examples in a batch of one process.
        lengths: The shortest and the longest; every batch draws one length between them.
        batches: Batches in an epoch.
        curriculum: Rows of steps, length, batch size: what the first steps have instead, row after row.
        mixed: Draw a length for each example instead of one for the batch.
        seed: Seed of the stream.
        rank: Rank of this process.
    """

    def __init__(
        self,
        rule: Rule,
        batch_size: int,
        lengths: tuple[int, int],
        batches: int,
        curriculum: Sequence[tuple[int, int, int]] = (),
        mixed: bool = False,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        self.rule, self.batch_size, self.lengths, self.batches = rule, batch_size, lengths, batches
        self.curriculum, self.mixed, self.seed, self.rank = curriculum, mixed, seed, rank

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, position: int) -> AnswerBatch:
        random = np.random.default_rng((TRAINING, self.seed, position, self.rank))
        (shortest, longest), batch_size = self.stage(position)
        lengths = random.integers(shortest, longest + 1, size=batch_size if self.mixed else 1)
        if not self.mixed:
            return self.rule(random, batch_size, int(lengths[0]))
        values, counts = np.unique(lengths, return_counts=True)
        return concatenate([self.rule(random, int(count), int(n)) for n, count in zip(values, counts, strict=True)])

    def stage(self, position: int) -> tuple[tuple[int, int], int]:
        """Range of lengths and batch size at a position of the stream."""
        for steps, length, batch_size in self.curriculum:
            if position < steps:
                return (length, length), batch_size
            position -= steps
        return self.lengths, self.batch_size


class HeldOutExamples(Dataset[AnswerBatch]):
    """A fixed set of batches; each process takes its share of the rows of each.

    Args:
        rule: Makes a batch.
        batch_size: Examples in a batch of all processes together.
        lengths: The length of each batch.
        part: ``VALIDATION`` or ``TEST``.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        InputError: If a batch has fewer examples than there are processes.
    """

    def __init__(
        self, rule: Rule, batch_size: int, lengths: Sequence[int], part: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < world_size:
            raise InputError(
                f"batch_size must be at least the number of processes, {world_size}, as they share the held-out "
                f"batches, got {batch_size}"
            )
        self.rule, self.batch_size, self.lengths, self.part = rule, batch_size, lengths, part
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> AnswerBatch:
        length = self.lengths[index]
        random = np.random.default_rng((self.part, length, index, 0))
        batch = self.rule(random, self.batch_size, length)
        return AnswerBatch(*(rows[self.rank :: self.world_size] for rows in batch))


class GeneratedDataModule(BaseDataModule):
    """Batches that a rule makes; subclasses say which.

    Args:
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: Length of the training examples, the longest if they differ.
        held_out_lengths: The length of every batch of the validation set and of the test set.
        steps_per_epoch: Batches that count as an epoch; the stream itself has no end.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        shortest: The shortest training length, where every batch draws its own; ``length`` if None.
        curriculum: Rows of steps, length, batch size: what the first steps of training have, row after row.
        mixed: Draw the length of every training example by itself.

    Raises:
        InputError: If a size or a length is out of range.
    """

    def __init__(
        self,
        batch_size: int,
        length: int,
        held_out_lengths: Sequence[int],
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
        shortest: int | None = None,
        curriculum: Sequence[tuple[int, int, int]] | None = None,
        mixed: bool = False,
    ) -> None:
        super().__init__(batch_size, length, num_workers)
        if steps_per_epoch < 1:
            raise InputError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}")
        if not held_out_lengths:
            raise InputError("There is nothing to evaluate on: eval_lengths is empty, or eval_batches below 1")
        for row in curriculum or ():
            if len(row) != 3 or min(row) < 1:
                raise InputError(
                    f"A row of curriculum must be steps, length and batch size, each at least 1, got {list(row)}"
                )
        self.held_out_lengths = list(held_out_lengths)
        self.steps_per_epoch = steps_per_epoch
        self.lengths = (length if shortest is None else shortest, length)
        self.curriculum = [tuple(row) for row in curriculum or ()]
        self.mixed = mixed
        for n in (*self.lengths, *self.held_out_lengths, *(row[1] for row in self.curriculum)):
            self.check_length(n)
        if self.lengths[0] > length:
            raise InputError(f"The shortest training length, {self.lengths[0]}, is above the longest, {length}")

    @property
    @abstractmethod
    def rule(self) -> Rule:
        """Makes a batch out of random numbers, a batch size and a length; a function that workers can be sent."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of a random guess among the answers that are possible at all."""

    def check_length(self, length: int) -> None:
        """Refuse a length that the rule cannot make.

        Raises:
            InputError: If it is too short.
        """
        if length < 1:
            raise InputError(f"A length must be at least 1, got {length}")

    @cached_property
    def baseline(self) -> float:
        """Accuracy of the best guess that is blind to the input: the commonest answer at each length and place.

        Learnt from 1,024 examples of each held-out length and measured on as many others.
        """
        accuracies = []
        for length in sorted(set(self.held_out_lengths)):
            random = np.random.default_rng((BASELINE, length, 0, 0))
            accuracies.append(blind_accuracy(self.rule(random, 1024, length), self.rule(random, 1024, length)))
        return float(np.mean(accuracies))

    def training_examples(self) -> TrainingExamples:
        """This process's share of the training stream."""
        rank, _ = self.processes
        shape = (self.batch_size, self.lengths, self.steps_per_epoch, self.curriculum, self.mixed)
        return TrainingExamples(self.rule, *shape, self.global_seed, rank)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream, from where it was left."""
        return self.loader(self.training_examples(), stream=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation set."""
        return self._held_out(VALIDATION)

    def test_dataloader(self) -> DataLoader[Any]:
        """The test set, of the same lengths."""
        return self._held_out(TEST)

    def _held_out(self, part: int) -> DataLoader[Any]:
        return self.loader(HeldOutExamples(self.rule, self.batch_size, self.held_out_lengths, part, *self.processes))
