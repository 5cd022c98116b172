"""AnswerBatch at marked positions of a sequence: copying, recall, formal languages."""

from collections.abc import Sequence

from torch import Tensor

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.tasks.scored import ScoredTask


class TaggingTask(ScoredTask):
    """Give the right answer at some positions of each sequence, from what came before.

    A batch is (inputs, targets, lengths): tokens and answers int64 (batch, positions), the answer -100 wherever none
    is asked for; lengths int64 (batch,). Padding may follow a sequence: the model is causal, and nothing is asked
    there. The metrics are those of ``ScoredTask``.
    """

    def answers(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, right answers and examples at the positions that ask, all that the head is computed at."""
        inputs, targets, _ = batch
        hidden, _ = self.backbone(self.dropout(self.encoder(inputs)))
        examples, positions = (targets != IGNORED).nonzero(as_tuple=True)
        return self.head(hidden[examples, positions]), targets[examples, positions], examples
