"""The encoding of the minRNN paper's published code: the tokens, then one query token for each answer.

The query is the highest token; the logits at the queries are the answers. Source: https://github.com/BorealisAI/minRNNs.
"""

import numpy as np

from minrnn_lightning.batches import AnswerBatch
from minrnn_lightning.data.synthetic.batches import append_queries
from minrnn_lightning.data.synthetic.languages.language import Language, count


def bucket_sort(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Sort digits in ascending order."""
    digits = random.integers(10, size=(batch_size, length))
    return append_queries(digits, np.sort(digits, axis=1), 10, length)


def missing_duplicate(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the token that continues a string's repeated prefix, whose length is the same in the whole batch."""
    string = random.integers(9, size=(batch_size, length))
    prefix = random.integers(length)
    return append_queries(
        np.concatenate([string, string[:, :prefix]], axis=1), string[:, prefix : prefix + 1], 9, length
    )


def cycle_nav(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the final position on a cycle of five after steps of -1, 0 and 1, encoded as 0, 1 and 2."""
    steps = random.integers(3, size=(batch_size, length))
    return append_queries(steps, (steps - 1).sum(axis=1, keepdims=True) % 5, 3, length)


def even_pairs(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict whether the number of unequal adjacent bits is odd: whether the first bit differs from the last."""
    bits = random.integers(2, size=(batch_size, length))
    return append_queries(bits, (bits[:, 1:] != bits[:, :-1]).sum(axis=1, keepdims=True) % 2, 2, length)


def parity_check(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict whether the number of ones is odd."""
    bits = random.integers(2, size=(batch_size, length))
    return append_queries(bits, bits.sum(axis=1, keepdims=True) % 2, 2, length)


def majority(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the most frequent of 63 tokens, the highest of them at a tie."""
    tokens = random.integers(63, size=(batch_size, length))
    most_frequent = 62 - count(tokens, 63)[:, ::-1].argmax(axis=1)
    return append_queries(tokens, most_frequent[:, None], 63, length)


def majority_count(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the count of the most frequent of 63 tokens, at most 62."""
    tokens = random.integers(63, size=(batch_size, length))
    return append_queries(tokens, count(tokens, 63).max(axis=1, keepdims=True).clip(max=62), 63, length)


MINRNN = {
    "bucket_sort": Language(bucket_sort, 11, 10, 10),
    "missing_duplicate": Language(missing_duplicate, 10, 9, 9),
    "cycle_nav": Language(cycle_nav, 4, 5, 5),
    "even_pairs": Language(even_pairs, 3, 2, 2),
    "parity_check": Language(parity_check, 3, 2, 2),
    "majority": Language(majority, 64, 63, 63),
    "majority_count": Language(majority_count, 64, 63, 63),
}
