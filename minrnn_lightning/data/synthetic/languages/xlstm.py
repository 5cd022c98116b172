"""The encoding of the xLSTM paper: the answer is read at the last token of the question, and is a token itself.

Token 0 is padding, also at positions where the previous answer would be an input. The length counts the answers.
Source: appendix B.1.1 of Beck et al. 2024, https://arxiv.org/abs/2405.04517.
"""

import numpy as np

from minrnn_lightning.batches import IGNORED, AnswerBatch
from minrnn_lightning.data.synthetic.batches import Tokens, answer_batch
from minrnn_lightning.data.synthetic.languages.language import Language, count


def read_at_last(tokens: Tokens, answers: Tokens, length: int) -> AnswerBatch:
    """Predict the first answer at the last token, and the others at padding tokens after it."""
    inputs = np.pad(tokens, ((0, 0), (0, answers.shape[1] - 1)))
    targets = np.full_like(inputs, IGNORED)
    targets[:, -answers.shape[1] :] = answers
    return answer_batch(inputs, targets, length)


def bucket_sort(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Sort ``length // 2`` tokens of 10 symbols in ascending order."""
    tokens = random.integers(1, 11, size=(batch_size, length // 2))
    return read_at_last(tokens, np.sort(tokens, axis=1), length)


def missing_duplicate(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the token that is masked (10) in the copy of a string of 9 symbols."""
    string = random.integers(1, 10, size=(batch_size, (length - 1) // 2))
    position = random.integers(string.shape[1], size=(batch_size, 1))
    copy = string.copy()
    np.put_along_axis(copy, position, 10, axis=1)
    return read_at_last(np.concatenate([string, copy], axis=1), np.take_along_axis(string, position, axis=1), length)


def cycle_nav(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the final position, 4 to 8, on a cycle from 4 on after the moves stay (1), forward (2) and back (3)."""
    moves = random.integers(1, 4, size=(batch_size, length - 1))
    state = np.array([0, 0, 1, -1])[moves].sum(axis=1, keepdims=True) % 5
    return read_at_last(moves, 4 + state, length)


def even_pairs(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict 1 if the first token equals the last, else 2."""
    tokens = random.integers(1, 3, size=(batch_size, length - 1))
    return read_at_last(tokens, 1 + (tokens[:, :1] != tokens[:, -1:]), length)


def parity_check(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict 1 if the number of twos is even, else 2."""
    tokens = random.integers(1, 3, size=(batch_size, length - 1))
    return read_at_last(tokens, 1 + (tokens == 2).sum(axis=1, keepdims=True) % 2, length)


def majority(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the most frequent of 63 tokens, at a tie the one that occurs first (the paper gives no rule)."""
    tokens = random.integers(1, 64, size=(batch_size, length - 1))
    first = np.take_along_axis(count(tokens, 64), tokens, axis=1).argmax(axis=1)
    return read_at_last(tokens, np.take_along_axis(tokens, first[:, None], axis=1), length)


def majority_count(random: np.random.Generator, batch_size: int, length: int) -> AnswerBatch:
    """Predict the count of the most frequent of 63 tokens, at most 63."""
    tokens = random.integers(1, 64, size=(batch_size, length - 1))
    return read_at_last(tokens, count(tokens, 64).max(axis=1, keepdims=True).clip(max=63), length)


XLSTM = {
    "bucket_sort": Language(bucket_sort, 11, 11, 10, shortest=2),
    "missing_duplicate": Language(missing_duplicate, 11, 11, 9, shortest=3),
    "cycle_nav": Language(cycle_nav, 9, 9, 5, shortest=2),
    "even_pairs": Language(even_pairs, 3, 3, 2, shortest=2),
    "parity_check": Language(parity_check, 3, 3, 2, shortest=2),
    "majority": Language(majority, 64, 64, 63, shortest=2),
    "majority_count": Language(majority_count, 64, 64, 63, shortest=2),
}
