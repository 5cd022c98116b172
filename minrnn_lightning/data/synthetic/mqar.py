"""Multi-query associative recall (MQAR): several keys are queried within one sequence."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from minrnn_lightning.batches import IGNORED, AnswerBatch
from minrnn_lightning.data.synthetic.batches import Rule, answer_batch, distinct
from minrnn_lightning.data.synthetic.recall import RecallDataModule
from minrnn_lightning.errors import InputError


def mqar(
    random: np.random.Generator,
    batch_size: int,
    length: int,
    vocab_size: int = 8192,
    pairs: int = 8,
    power: float = 0.01,
    random_filler: bool = False,
) -> AnswerBatch:
    """Key-value pairs, then every key once more as a query among fillers; the answer at a query is the key's value.

    Keys are 1 to vocab_size / 2 - 1, values the rest, neither is repeated in an example, 0 is the filler. The
    queries are in slots of two positions, drawn without replacement, slot s with probability proportional to
    s^(power - 1): mostly soon after the pairs. ``[1 9 3 8 0 0 3 0 0 0 0 0 0 0 1 0]`` is answered 8 at position 6 and
    9 at position 14 with a vocabulary of 12.
    """
    half = vocab_size // 2
    keys = 1 + random.permuted(distinct(random, batch_size, half - 1, pairs), axis=1)
    values = half + random.permuted(distinct(random, batch_size, vocab_size - half, pairs), axis=1)
    slots = np.arange(1, (length - 2 * pairs) // 2 + 1)
    # The order of exponential times with these rates is that of draws without replacement (Efraimidis & Spirakis 2006).
    times = random.exponential(size=(batch_size, len(slots))) / slots ** (power - 1)
    positions = 2 * pairs + 2 * np.argsort(times, axis=1)[:, :pairs]
    tokens = np.zeros((batch_size, length), dtype=np.int64)
    if random_filler:
        tokens = random.integers(vocab_size, size=tokens.shape)
    tokens[:, : 2 * pairs] = np.stack([keys, values], axis=2).reshape(batch_size, -1)
    np.put_along_axis(tokens, positions, keys, axis=1)
    targets = np.full_like(tokens, IGNORED)
    np.put_along_axis(targets, positions, values, axis=1)
    return answer_batch(tokens, targets, length)


class MQARDataModule(RecallDataModule):
    """Multi-query associative recall: every key is queried once, and its value is predicted there.

    A state of fixed size holds a limited number of pairs: the task measures the accuracy against ``pairs``.

    Args:
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: Positions; at least four times the pairs.
        pairs: Key-value pairs in an example.
        vocab_size: Number of symbols: a filler, keys, and as many values.
        power: How late the queries are: 1 distributes them uniformly, with 0.01 most are early.
        random_filler: Random symbols instead of the filler between the queries.
        curriculum: Rows of steps, length and batch size, which apply to the first steps of training, row after row.
        eval_lengths: Lengths to validate and test on; ``length`` if None.
        eval_batches: Batches of each of these lengths in the validation set and in the test set.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.

    Raises:
        InputError: A size is out of range, a length too short or the vocabulary too small for the pairs.

    Source: Arora et al. 2023, https://arxiv.org/abs/2312.04927; https://github.com/HazyResearch/zoology.
    """

    smallest_vocabulary = 4

    def __init__(
        self,
        batch_size: int = 256,
        length: int = 128,
        pairs: int = 8,
        vocab_size: int = 8192,
        power: float = 0.01,
        random_filler: bool = False,
        curriculum: list[tuple[int, int, int]] | None = None,
        eval_lengths: list[int] | None = None,
        eval_batches: int = 12,
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
    ) -> None:
        if pairs < 1:
            raise InputError(f"pairs must be at least 1, got {pairs}")
        if vocab_size < 2 * pairs + 2:
            raise InputError(f"vocab_size must be at least {2 * pairs + 2} for {pairs} pairs, got {vocab_size}")
        if not 0 < power < math.inf:
            raise InputError(f"power must be above 0 and finite, got {power}")
        self.pairs, self.power, self.random_filler = pairs, power, random_filler
        super().__init__(
            batch_size, length, vocab_size, eval_lengths, eval_batches, steps_per_epoch, num_workers, curriculum
        )

    @property
    def chance(self) -> float:
        """One over the number of values."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    @property
    def rule(self) -> Rule:
        """``mqar`` of this size."""
        return partial(
            mqar, vocab_size=self.vocab_size, pairs=self.pairs, power=self.power, random_filler=self.random_filler
        )

    def check_length(self, length: int) -> None:
        """Refuse a length too short for the pairs and a slot for each query."""
        if length < 4 * self.pairs:
            raise InputError(
                f"The length for {self.pairs} pairs must be at least {4 * self.pairs}, got {length}; raise the length "
                "or lower pairs"
            )
