"""Answers at marked positions of a sequence: copying, recall, formal languages."""

from collections.abc import Sequence

from torch import Tensor

from minrnn_lightning.batches import IGNORED, AnswerBatch
from minrnn_lightning.tasks.scored import ScoredTask
from minrnn_lightning.tasks.sequence import SequenceTask


class TaggingTask(ScoredTask, SequenceTask):
    """Predict the answer at some positions of each sequence from the tokens up to there.

    A batch is an ``AnswerBatch``: inputs and targets int64 (batch, length), the target -100 at positions without
    an answer, and lengths int64 (batch,). Sequences may be padded: the model is causal, and padding has no answer.
    The metrics are those of ``ScoredTask``.
    """

    batch_type = AnswerBatch

    def logits_and_targets(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, targets and examples at the positions that have an answer; the head is computed at these only."""
        hidden, targets = self.hidden(batch), batch[1]
        examples, positions = (targets != IGNORED).nonzero(as_tuple=True)
        return self.head(hidden[examples, positions]), targets[examples, positions], examples
