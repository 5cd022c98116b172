"""``Language``: a task on formal languages in one encoding, and counting, which several of them do."""

from typing import NamedTuple

import numpy as np

from minrnn_lightning.data.synthetic.batches import Rule, Tokens


class Language(NamedTuple):
    """A task: its rule and its sizes.

    Attributes:
        rule: Makes a batch of one length.
        input_size: Input symbols.
        output_size: Classes of the answers, those included that are never right.
        possible: AnswerBatch that are possible: a random guess has one over their number.
        shortest: The shortest length at which there is a question.
    """

    rule: Rule
    input_size: int
    output_size: int
    possible: int
    shortest: int = 1


def count(tokens: Tokens, symbols: int) -> Tokens:
    """How often each symbol comes in each row: (batch, symbols)."""
    rows = np.arange(len(tokens))[:, None]
    return np.bincount((tokens + symbols * rows).ravel(), minlength=symbols * len(tokens)).reshape(-1, symbols)
