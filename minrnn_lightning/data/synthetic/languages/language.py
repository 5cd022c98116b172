"""``Language``: a task on formal languages in one encoding, and a function that counts symbols."""

from typing import NamedTuple

import numpy as np

from minrnn_lightning.data.synthetic.batches import Rule, Tokens


class Language(NamedTuple):
    """A task on formal languages: how its examples are generated, and its sizes.

    Attributes:
        rule: Generates a batch of one length.
        input_size: Number of input symbols.
        output_size: Number of classes of the answers, including classes that are never correct.
        possible: Number of possible answers; the accuracy of a random guess is one over it.
        shortest: The shortest length for which the task is defined.
    """

    rule: Rule
    input_size: int
    output_size: int
    possible: int
    shortest: int = 1


def count(tokens: Tokens, symbols: int) -> Tokens:
    """Count the occurrences of each symbol in each row: (batch, symbols)."""
    rows = np.arange(len(tokens))[:, None]
    return np.bincount((tokens + symbols * rows).ravel(), minlength=symbols * len(tokens)).reshape(-1, symbols)
