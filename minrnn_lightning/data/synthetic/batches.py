"""Building and concatenating batches with answers at some positions; the accuracy of a guess without the input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minrnn_lightning.batches import IGNORED, AnswerBatch

Tokens = npt.NDArray[np.int64]
Rule = Callable[[np.random.Generator, int, int], AnswerBatch]  # from a random generator, a batch size and a length


def answer_batch(inputs: Tokens, targets: Tokens, length: int) -> AnswerBatch:
    """A batch in which every example has the same length."""
    return AnswerBatch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.full((len(inputs),), length))


def append_queries(tokens: Tokens, answers: Tokens, query: int, length: int) -> AnswerBatch:
    """Append one query token for each answer, at which it is predicted; the answers themselves are never inputs.

    Args:
        tokens: The tokens before the queries, (batch, positions).
        answers: The answers in order, (batch, answers).
        query: The query token.
        length: The length that the examples are reported under.
    """
    inputs = np.concatenate([tokens, np.full_like(answers, query)], axis=1)
    targets = np.concatenate([np.full_like(tokens, IGNORED), answers], axis=1)
    return answer_batch(inputs, targets, length)


def distinct(random: np.random.Generator, batch_size: int, population: int, count: int) -> Tokens:
    """``count`` different numbers below ``population`` in each row, every set equally likely: (batch_size, count).

    The time does not depend on the population: R. Floyd's algorithm, https://doi.org/10.1145/30401.315746. The order
    within a row is not uniform.
    """
    chosen = np.full((batch_size, count), -1, dtype=np.int64)
    for index, top in enumerate(range(population - count, population)):
        draw = random.integers(top + 1, size=batch_size)
        taken = (chosen[:, :index] == draw[:, None]).any(axis=1)
        chosen[:, index] = np.where(taken, top, draw)
    return chosen


def concatenate(batches: Sequence[AnswerBatch], padding: int = 0) -> AnswerBatch:
    """Concatenate batches along the batch axis, padded at the end to the longest; padding has no target."""
    longest = max(batch.inputs.shape[1] for batch in batches)

    def pad(rows: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(rows, (0, longest - rows.shape[1]), value=value)

    return AnswerBatch(
        torch.cat([pad(batch.inputs, padding) for batch in batches]),
        torch.cat([pad(batch.targets, IGNORED) for batch in batches]),
        torch.cat([batch.lengths for batch in batches]),
    )


def blind_accuracy(known: AnswerBatch, unknown: AnswerBatch) -> float:
    """Mean accuracy on ``unknown`` of guessing the most frequent answers of ``known``.

    The most frequent answer is found separately for the first, the second and every further answer of an example.
    """
    _, indices, answers = _in_order(known)
    examples, unknown_indices, unknown_answers = _in_order(unknown)
    classes = int(answers.max()) + 1
    pairs, counts = np.unique(indices * classes + answers, return_counts=True)
    guesses = np.full(max(indices.max(), unknown_indices.max()) + 1, IGNORED)
    ascending = pairs[np.argsort(counts, kind="stable")]
    # Of several answers to one index the last assignment remains: the most frequent one.
    guesses[ascending // classes] = ascending % classes
    correct = guesses[unknown_indices] == unknown_answers
    return float(np.mean(np.bincount(examples, correct) / np.bincount(examples)))


def _in_order(batch: AnswerBatch) -> tuple[Tokens, Tokens, Tokens]:
    """For every answer of a batch: the index of its example, its index within the example, and the answer."""
    targets = batch.targets.numpy()
    examples, positions = np.nonzero(targets != IGNORED)
    return examples, np.arange(len(examples)) - np.searchsorted(examples, examples), targets[examples, positions]
