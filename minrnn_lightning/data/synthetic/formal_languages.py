"""Formal languages: trained on short strings, tested on longer ones."""

from __future__ import annotations

from typing import Literal

import numpy as np

from minrnn_lightning.data.synthetic.batches import Rule
from minrnn_lightning.data.synthetic.languages import ENCODINGS
from minrnn_lightning.data.synthetic.module import GeneratedDataModule
from minrnn_lightning.errors import InputError


class FormalLanguageDataModule(GeneratedDataModule):
    """A task on formal languages, tested on longer strings than it is trained on.

    Results in different encodings are not comparable:

    - ``minrnn``, of the minRNN paper's published code: ``bucket_sort, missing_duplicate, cycle_nav, even_pairs,
      parity_check, majority, majority_count``. Tokens, then a query for each answer; one length per batch.
    - ``xlstm``, of the xLSTM paper: the same seven. No query, the answer is predicted at the last token and is a token
      of the same alphabet; a length for each example, which counts the answers.
    - ``deepmind``, of the original benchmark: the first five, partly with other alphabets, and ``reverse_string,
      duplicate_string, odds_first, stack_manipulation, modular_arithmetic, modular_arithmetic_brackets,
      solve_equation``. Empty tokens instead of the query; one length per batch.

    At a tie, ``majority`` is the highest token in ``minrnn``, the first in ``xlstm``. A batch is ``AnswerBatch``. The
    held-out batches have lengths evenly spaced over the range of ``eval_lengths``; the accuracy is the mean over
    examples of the fraction of correct answers. The minRNN code selects the checkpoint that is best on the validation
    set, whose lengths are those of the test.

    Args:
        task: Name of the task.
        encoding: ``minrnn``, ``xlstm`` or ``deepmind``.
        batch_size: Examples in a batch, per process in training, of all processes together in evaluation.
        length: The longest training length.
        shortest: The shortest training length; that of the task if None, which is 1 to 3.
        eval_lengths: The shortest and the longest length to validate and test on.
        eval_batches: Batches in the validation set and in the test set, each of one length.
        steps_per_epoch: Batches in an epoch of the endless training stream.
        num_workers: Worker processes that prepare batches; 0 prepares them in the training process.

    Raises:
        InputError: There is no such task in the encoding, or a size is out of range.

    Source: Delétang et al. 2023, https://arxiv.org/abs/2207.02098; Beck et al. 2024, https://arxiv.org/abs/2405.04517;
    https://github.com/BorealisAI/minRNNs.
    """

    def __init__(
        self,
        task: str,
        encoding: Literal["minrnn", "xlstm", "deepmind"] = "minrnn",
        batch_size: int = 128,
        length: int = 40,
        shortest: int | None = None,
        eval_lengths: tuple[int, int] = (40, 256),
        eval_batches: int = 25,
        steps_per_epoch: int = 1000,
        num_workers: int = 0,
    ) -> None:
        if encoding not in ENCODINGS:
            raise InputError(f"encoding must be {', '.join(ENCODINGS)}, got {encoding}")
        languages = ENCODINGS[encoding]
        if task not in languages:
            raise InputError(f"task {task!r} is unknown in the encoding {encoding}; it can be {', '.join(languages)}")
        if len(eval_lengths) != 2 or eval_lengths[0] > eval_lengths[1]:
            raise InputError(f"eval_lengths must be the shortest and the longest, got {list(eval_lengths)}")
        self.task = task
        self.language = languages[task]
        held_out = [round(n) for n in np.linspace(*eval_lengths, max(0, eval_batches))]
        super().__init__(
            batch_size,
            length,
            held_out,
            steps_per_epoch,
            num_workers,
            shortest=self.language.shortest if shortest is None else shortest,
            mixed=encoding == "xlstm",
        )

    @property
    def input_size(self) -> int:
        """Number of input symbols, including the query or empty tokens."""
        return self.language.input_size

    @property
    def output_size(self) -> int:
        """Number of classes of the answers."""
        return self.language.output_size

    @property
    def chance(self) -> float:
        """One over the number of possible answers."""
        return 1 / self.language.possible

    @property
    def rule(self) -> Rule:
        """The function that generates the task's batches."""
        return self.language.rule

    def check_length(self, length: int) -> None:
        """Refuse a length for which the task is not defined."""
        if length < self.language.shortest:
            raise InputError(f"The length of {self.task} must be at least {self.language.shortest}, got {length}")
