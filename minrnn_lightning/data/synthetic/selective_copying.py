"""Selective copying: repeat the few data tokens of a long noisy sequence, in order."""

from __future__ import annotations

from functools import partial

import numpy as np

from minrnn_lightning.batches import AnswerBatch
from minrnn_lightning.data.synthetic.batches import Rule, append_queries, distinct
from minrnn_lightning.data.synthetic.recall import RecallDataModule
from minrnn_lightning.errors import InputError


def selective_copying(
    random: np.random.Generator, batch_size: int, length: int, data_tokens: int = 16, vocab_size: int = 16
) -> AnswerBatch:
    """Data tokens at random positions in noise, then as many queries; each query is answered with the next data token.

    Token 0 is the query, the highest token is the noise, those between are data, drawn with repetition:
    ``[7 7 3 7 4 1 7 7 7 6 7 7 | 0 0 0 0]`` is answered ``[3 4 1 6]`` with 4 data tokens and a vocabulary of 8.
    """
    query, noise = 0, vocab_size - 1
    body = np.full((batch_size, length), noise)
    positions = np.sort(distinct(random, batch_size, length, data_tokens))
    data = random.integers(1, noise, size=positions.shape)
    np.put_along_axis(body, positions, data, axis=1)
    return append_queries(body, data, query, length)


class SelectiveCopyingDataModule(RecallDataModule):
    """Selective copying in the encoding of the minRNN paper's published code (BorealisAI/minRNNs).

    A batch is ``AnswerBatch``: inputs and targets int64 (batch_size, length + data_tokens), the last ``data_tokens``
    positions being queries. The accuracy is that of single tokens, not of sequences; a guess among the data symbols
    scores 1/14 at a vocabulary of 16, and so does the best guess without the input.

    Args:
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: Positions of noise and data; the queries are appended.
        data_tokens: Tokens to remember.
        vocab_size: Number of symbols, including the noise and the query.
        curriculum: Rows of steps, length, batch size: with ``[[500, 64, 128], [500, 256, 64]]`` the first 500 batches
            have length 64 and 128 examples, the next 500 length 256 and 64 examples; then ``length`` and
            ``batch_size`` apply.
        eval_lengths: Lengths to validate and test on; ``length`` if None.
        eval_batches: Batches of each of these lengths in the validation set and in the test set.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.

    Raises:
        InputError: A size is out of range, or a length is shorter than the data tokens.

    Source: section E.1 of Gu & Dao 2023, https://arxiv.org/abs/2312.00752; after Arjovsky et al. 2016,
    https://arxiv.org/abs/1511.06464.
    """

    smallest_vocabulary = 3

    def __init__(
        self,
        batch_size: int = 64,
        length: int = 4096,
        data_tokens: int = 16,
        vocab_size: int = 16,
        curriculum: list[tuple[int, int, int]] | None = None,
        eval_lengths: list[int] | None = None,
        eval_batches: int = 16,
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
    ) -> None:
        if data_tokens < 1:
            raise InputError(f"data_tokens must be at least 1, got {data_tokens}")
        if vocab_size < self.smallest_vocabulary:
            raise InputError(f"vocab_size must be at least 3: the query, the noise and a data symbol, got {vocab_size}")
        self.data_tokens = data_tokens
        super().__init__(
            batch_size, length, vocab_size, eval_lengths, eval_batches, steps_per_epoch, num_workers, curriculum
        )

    @property
    def chance(self) -> float:
        """One over the number of data symbols."""
        return 1 / (self.vocab_size - 2)

    @property
    def rule(self) -> Rule:
        """``selective_copying`` of this size."""
        return partial(selective_copying, data_tokens=self.data_tokens, vocab_size=self.vocab_size)

    def check_length(self, length: int) -> None:
        """Refuse a length that has fewer positions than data tokens."""
        if length < self.data_tokens:
            raise InputError(
                f"{self.data_tokens} data tokens do not fit into length {length}; raise length or lower data_tokens"
            )
