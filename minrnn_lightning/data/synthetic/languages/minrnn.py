"""The encoding of the minRNN paper's published code: the tokens, then one query token for each answer.

The query is the highest token; the logits at the queries are the answers. Source: https://github.com/BorealisAI/minRNNs.
"""

import numpy as np

from minrnn_lightning.batches import AnswerBatch
from minrnn_lightning.data.synthetic.batches import append_queries
from minrnn_lightning.data.synthetic.languages.language import Language, count


def bucket_sort(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """The digits in ascending order."""
    digits = random.integers(10, size=(batch_size, length))
    return append_queries(digits, np.sort(digits, axis=1), 10, length)


def missing_duplicate(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """A string and its beginning once more: the next token of it. The beginning is as long in the whole batch."""
    string = random.integers(9, size=(batch_size, length))
    known = random.integers(length)
    return append_queries(np.concatenate([string, string[:, :known]], axis=1), string[:, known : known + 1], 9, length)


def cycle_nav(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Steps of -1, 0 and 1, written 0, 1 and 2, around a cycle of five: where they lead."""
    steps = random.integers(3, size=(batch_size, length))
    return append_queries(steps, (steps - 1).sum(axis=1, keepdims=True) % 5, 3, length)


def even_pairs(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Whether the number of unequal neighbours is odd: whether the first bit differs from the last."""
    bits = random.integers(2, size=(batch_size, length))
    return append_queries(bits, (bits[:, 1:] != bits[:, :-1]).sum(axis=1, keepdims=True) % 2, 2, length)


def parity_check(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Whether the number of ones is odd."""
    bits = random.integers(2, size=(batch_size, length))
    return append_queries(bits, bits.sum(axis=1, keepdims=True) % 2, 2, length)


def majority(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """The most frequent of 63 tokens, the highest of those if there are several."""
    tokens = random.integers(63, size=(batch_size, length))
    commonest = 62 - count(tokens, 63)[:, ::-1].argmax(axis=1)
    return append_queries(tokens, commonest[:, None], 63, length)


def majority_count(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """How often the most frequent of 63 tokens comes, at most 62."""
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
