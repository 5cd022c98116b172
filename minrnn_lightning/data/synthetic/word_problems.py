"""Word problems of permutation groups: the product of the elements so far, at every step."""

from __future__ import annotations

from functools import cached_property, partial
from itertools import permutations
from typing import Literal

import numpy as np

from minrnn_lightning.batches import AnswerBatch
from minrnn_lightning.data.synthetic.batches import Rule, Tokens, answer_batch
from minrnn_lightning.data.synthetic.module import GeneratedDataModule
from minrnn_lightning.errors import InputError

GROUPS = ("S3", "S4", "S5", "A4", "A5")


def elements(group: str) -> Tokens:
    """The permutations of a group in lexicographic order, (elements, points): row p maps the point i to p[i].

    Args:
        group: ``S`` for all permutations or ``A`` for the even ones, and the number of points.
    """
    rows: Tokens = np.array(list(permutations(range(int(group[1:])))), dtype=np.int64)
    if group[0] == "A":
        inversions = np.triu(rows[:, :, None] > rows[:, None, :]).sum(axis=(1, 2))
        rows = rows[inversions % 2 == 0]
    return rows


def products(group: str) -> Tokens:
    """The number of the element that p and then q make, at [p, q]: (elements, elements)."""
    rows = elements(group)
    points = rows.shape[1]
    weights = points ** np.arange(points)[::-1]  # a row times these ascends with the number of the row
    one_after_other = rows[:, rows].transpose(1, 0, 2)  # q[p[i]] at [p, q, i]
    table: Tokens = np.searchsorted(rows @ weights, one_after_other @ weights)
    return table


def generators(group: str) -> Tokens:
    """The numbers of two elements of which all others are products: the shortest cycle in the group, and a longest."""
    points = int(group[1:])
    if group[0] == "S":
        two = [[1, 0, *range(2, points)], [*range(1, points), 0]]
    else:
        first = 1 - points % 2  # an even permutation is a cycle of an odd number of points
        two = [[1, 2, 0, *range(3, points)], [*range(first), *range(first + 1, points), first]]
    return np.array([elements(group).tolist().index(row) for row in two])


def word_problem(
    random: np.random.Generator,
    batch_size: int,
    length: int,
    table: Tokens,
    frequent: Tokens | None = None,
    share: float = 0.0,
) -> AnswerBatch:
    """Random elements of a group; the answer at each step is the product of those up to there.

    Args:
        random: Generator of the elements.
        batch_size: Words.
        length: Elements of a word.
        table: The product of every two elements, (elements, elements).
        frequent: Elements from which ``share`` of the steps are drawn, (count,).
        share: A probability.
    """
    tokens = random.integers(len(table), size=(batch_size, length))
    if frequent is not None:
        drawn = random.random(tokens.shape) < share
        tokens = np.where(drawn, random.choice(frequent, size=tokens.shape), tokens)
    answers = tokens.copy()
    for t in range(1, length):
        answers[:, t] = table[answers[:, t - 1], tokens[:, t]]
    return answer_batch(tokens, answers, length)


class WordProblemDataModule(GeneratedDataModule):
    """The word problem of a group of permutations: the permutation that the tokens so far make, one after the other.

    Tokens and answers are the numbers of the group's elements in lexicographic order. For S5 and A5, whose products are
    not those of a solvable group, the problem is complete for NC¹: no recurrence with diagonal transitions of fixed
    depth and precision solves it at every length, as far as is known. Source: "The Illusion of State in State-Space
    Models" (Merrill et al. 2024, https://arxiv.org/abs/2404.08819), section 3.

    Args:
        group: ``S3``, ``S4`` or ``S5``, all permutations of so many points, or ``A4`` or ``A5``, the even ones.
        batch_size: Words in a batch, per process in training, of all processes together in evaluation.
        length: Elements of a training word.
        generator_share: The probability with which an element of a word in the curriculum is drawn from two generators
            of the group instead of all its elements: the generators are learned first, and from them the others, which
            are rare. All other words, and those held out, are of all elements, equally likely.
        shortest: The shortest training length, where every batch draws its own; ``length`` if None.
        curriculum: Rows of steps, length and batch size, which apply to the first steps of training, row after row.
        eval_lengths: Lengths to validate and test on; ``length`` if None.
        eval_batches: Batches of each of these lengths in the validation set and in the test set.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.

    Raises:
        InputError: If the group is unknown, or a size is out of range.
    """

    def __init__(
        self,
        group: Literal["S3", "S4", "S5", "A4", "A5"] = "S3",
        batch_size: int = 64,
        length: int = 32,
        generator_share: float = 0.0,
        shortest: int | None = None,
        curriculum: list[tuple[int, int, int]] | None = None,
        eval_lengths: list[int] | None = None,
        eval_batches: int = 4,
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
    ) -> None:
        if group not in GROUPS:
            raise InputError(f"group must be one of {', '.join(GROUPS)}, got {group}")
        if not 0 <= generator_share <= 1:
            raise InputError(f"generator_share must be from 0 to 1, got {generator_share}")
        self.group, self.generator_share = group, generator_share
        held_out = [n for n in ([length] if eval_lengths is None else eval_lengths) for _ in range(eval_batches)]
        super().__init__(
            batch_size, length, held_out, steps_per_epoch, num_workers, shortest=shortest, curriculum=curriculum
        )

    @cached_property
    def table(self) -> Tokens:
        """The product of every two elements, (elements, elements)."""
        return products(self.group)

    @property
    def input_size(self) -> int:
        """Elements of the group."""
        return len(self.table)

    @property
    def output_size(self) -> int:
        """Elements of the group."""
        return len(self.table)

    @property
    def chance(self) -> float:
        """One over the number of elements."""
        return 1 / len(self.table)

    @property
    def rule(self) -> Rule:
        """``word_problem`` of the group, with all elements equally likely."""
        return partial(word_problem, table=self.table)

    @property
    def curriculum_rule(self) -> Rule:
        """``word_problem`` of the group, with two generators more frequent than the other elements."""
        frequent = generators(self.group)
        return partial(word_problem, table=self.table, frequent=frequent, share=self.generator_share)
