"""Synthetic recall: induction heads and associative recall."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import numpy as np

from minrnn_lightning.batches import IGNORED, AnswerBatch
from minrnn_lightning.data.synthetic.batches import Rule, answer_batch
from minrnn_lightning.data.synthetic.module import GeneratedDataModule
from minrnn_lightning.errors import InputError


def induction_heads(random: np.random.Generator, batch_size: int, length: int, vocab_size: int = 16) -> AnswerBatch:
    """Random tokens with one trigger, repeated at the end; the answer is the token after its first occurrence.

    The highest token is the trigger: ``[3 4 0 3 7 5 6 2 3 3 6 7]`` is answered 5 with a vocabulary of 8.
    """
    trigger = vocab_size - 1
    tokens = random.integers(trigger, size=(batch_size, length))
    position = random.integers(length - 3, size=(batch_size, 1))
    np.put_along_axis(tokens, position, trigger, axis=1)
    tokens[:, -1] = trigger
    targets = np.full_like(tokens, IGNORED)
    targets[:, -1:] = np.take_along_axis(tokens, position + 1, axis=1)
    return answer_batch(tokens, targets, length)


def associative_recall(random: np.random.Generator, batch_size: int, length: int, vocab_size: int = 20) -> AnswerBatch:
    """Key-value pairs, each key always with the same value, then one of these keys as the query for its value.

    The vocabulary is the keys, as many values, the arrow before the query, and an unused symbol. Each example draws a
    value for every key, and its query from the keys that occur in it.
    """
    keys = (vocab_size - 2) // 2
    arrow = vocab_size - 2
    value_of = random.integers(keys, 2 * keys, size=(batch_size, keys))
    shown = random.integers(keys, size=(batch_size, length // 2))
    values = np.take_along_axis(value_of, shown, axis=1)
    present = (shown[:, :, None] == np.arange(keys)).any(axis=1)
    query = np.where(present, random.random(present.shape), -1).argmax(axis=1, keepdims=True)
    pairs = np.stack([shown, values], axis=2).reshape(batch_size, -1)
    tokens = np.concatenate([pairs, np.full_like(query, arrow), query], axis=1)
    targets = np.full_like(tokens, IGNORED)
    targets[:, -1:] = np.take_along_axis(value_of, query, axis=1)
    return answer_batch(tokens, targets, length)


class RecallDataModule(GeneratedDataModule):
    """Base of selective copying and the recall tasks: one training length, several held-out lengths.

    Args:
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: Length of the training examples.
        vocab_size: Number of symbols.
        eval_lengths: Lengths to validate and test on; ``length`` if None.
        eval_batches: Batches of each of these lengths in the validation set and in the test set.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.
        curriculum: Rows of steps, length and batch size, which apply to the first steps of training, row after row.
    """

    def __init__(
        self,
        batch_size: int,
        length: int,
        vocab_size: int,
        eval_lengths: list[int] | None,
        eval_batches: int,
        steps_per_epoch: int,
        num_workers: int,
        curriculum: list[tuple[int, int, int]] | None,
    ) -> None:
        if vocab_size < self.smallest_vocabulary:
            raise InputError(f"vocab_size must be at least {self.smallest_vocabulary}, got {vocab_size}")
        self.vocab_size = vocab_size
        held_out = [n for n in ([length] if eval_lengths is None else eval_lengths) for _ in range(eval_batches)]
        super().__init__(batch_size, length, held_out, steps_per_epoch, num_workers, curriculum=curriculum)

    @property
    @abstractmethod
    def smallest_vocabulary(self) -> int:
        """The smallest vocabulary for which the task is defined."""

    @property
    def input_size(self) -> int:
        """The vocabulary."""
        return self.vocab_size

    @property
    def output_size(self) -> int:
        """The vocabulary."""
        return self.vocab_size


class InductionHeadsDataModule(RecallDataModule):
    """Induction heads: predict at the last position which token followed the first trigger.

    Only one position in the sequence matters, and the test lengths are far above the training length. The layout, which
    the paper leaves open, is that of the H3 code, with 15 ordinary tokens and the trigger.

    Args:
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: Length of the training examples, the last trigger included.
        vocab_size: Number of symbols, including the trigger.
        curriculum: Rows of steps, length and batch size, which apply to the first steps of training, row after row.
        eval_lengths: Lengths to validate and test on; ``length`` if None.
        eval_batches: Batches of each of these lengths in the validation set and in the test set.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.

    Raises:
        InputError: A size is out of range.

    Source: section E.1 of Gu & Dao 2023, https://arxiv.org/abs/2312.00752; https://github.com/HazyResearch/safari.
    """

    smallest_vocabulary = 2

    def __init__(
        self,
        batch_size: int = 8,
        length: int = 256,
        vocab_size: int = 16,
        curriculum: list[tuple[int, int, int]] | None = None,
        eval_lengths: list[int] | None = None,
        eval_batches: int = 64,
        steps_per_epoch: int = 8192,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size, length, vocab_size, eval_lengths, eval_batches, steps_per_epoch, num_workers, curriculum
        )

    @property
    def chance(self) -> float:
        """One over the number of ordinary tokens."""
        return 1 / (self.vocab_size - 1)

    @property
    def rule(self) -> Rule:
        """``induction_heads`` of this vocabulary."""
        return partial(induction_heads, vocab_size=self.vocab_size)

    def check_length(self, length: int) -> None:
        """Refuse a length too short for the trigger, its value and the trigger again."""
        if length < 4:
            raise InputError(f"The length of induction heads must be at least 4, got {length}")


class AssociativeRecallDataModule(RecallDataModule):
    """Associative recall: predict the value that belongs to the key at the last position.

    Args:
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: Tokens of the pairs, twice their number; arrow and query are added to them.
        vocab_size: Symbols: keys, as many values, and two special ones.
        curriculum: Rows of steps, length and batch size, which apply to the first steps of training, row after row.
        eval_lengths: Lengths to validate and test on; ``length`` if None.
        eval_batches: Batches of each of these lengths in the validation set and in the test set.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.

    Raises:
        InputError: A size is out of range, or a length odd.

    Source: Fu et al. 2023, https://arxiv.org/abs/2212.14052; https://github.com/HazyResearch/safari.
    """

    smallest_vocabulary = 4

    def __init__(
        self,
        batch_size: int = 32,
        length: int = 40,
        vocab_size: int = 20,
        curriculum: list[tuple[int, int, int]] | None = None,
        eval_lengths: list[int] | None = None,
        eval_batches: int = 16,
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size, length, vocab_size, eval_lengths, eval_batches, steps_per_epoch, num_workers, curriculum
        )

    @property
    def chance(self) -> float:
        """One over the number of values."""
        return 1 / ((self.vocab_size - 2) // 2)

    @property
    def rule(self) -> Rule:
        """``associative_recall`` of this vocabulary."""
        return partial(associative_recall, vocab_size=self.vocab_size)

    def check_length(self, length: int) -> None:
        """Refuse a length that is not made of pairs."""
        if length < 2 or length % 2:
            raise InputError(f"The length of associative recall must be even, two tokens for each pair, got {length}")
