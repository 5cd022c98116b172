"""``SequenceTask``: an output at every step of a sequence of tokens."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from minrnn_lightning.batches import IGNORED
from minrnn_lightning.nn.language_model import EncoderBackboneHead
from minrnn_lightning.nn.sequence_parallel import mean_of_parts
from minrnn_lightning.tasks.carried import CarryingTask, steps_of


class SequenceTask(EncoderBackboneHead, CarryingTask):
    """Encoder, backbone and head, applied to all steps in parallel or one at a time; the base of language and tagging.

    Args:
        args: Of ``Task``.
        options: Of ``Task``.

    Raises:
        InputError: A size is out of range, the mixer unknown, or the number of parameters out of reach.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.encoder = self.make_encoder(self.dim)
        self.backbone = self.make_backbone()
        self.head = self.make_head(self.dim)

    def make_encoder(self, dim: int) -> nn.Module:
        """Make the module that maps int64 tokens (batch, length) to (batch, length, dim)."""
        return nn.Embedding(self.input_size, dim)

    def make_head(self, dim: int) -> nn.Module:
        """Make the module that maps (..., dim) to logits (..., output_size)."""
        return nn.Linear(dim, self.output_size, bias=False)

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits (batch, length, output_size) and targets, a scalar to minimise."""

    def batch_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """The mean loss of a batch of inputs and targets (batch, length), a scalar."""
        logits = self.logits(batch) if hasattr(batch, "continues") else self(batch[0])[0]
        loss, group = self.loss(logits, batch[1]), self.backbone.group
        return loss if group is None else mean_of_parts(loss, (batch[1] != IGNORED).sum(), group)

    def logits(self, batch: Sequence[Tensor]) -> Tensor:
        """The logits of a batch, (batch, length, output_size)."""
        return self.carry(batch, lambda state: self(batch[0], state, **steps_of(batch)))

    def hidden(self, batch: Sequence[Tensor]) -> Tensor:
        """The outputs of the backbone for a batch, (batch, length, dim)."""
        x = self.dropout(self.encoder(batch[0]))
        return self.carry(batch, lambda state: self.backbone(x, state, **steps_of(batch)))
