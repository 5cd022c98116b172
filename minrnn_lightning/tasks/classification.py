"""One label for a whole sequence, or for a pair of sequences: the Long Range Arena."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.size import flops, products
from minrnn_lightning.tasks.scored import ScoredTask

OPTIONS = ("expansion", "kernel_size", "mlp_ratio", "dropout", "mixer_args")  # of a Backbone


class ClassificationTask(ScoredTask):
    """Tell the class of a sequence of tokens; what follows its end changes nothing.

    A batch is (inputs, targets, lengths): tokens int64 (batch, positions), labels (batch,) and the number of real
    tokens (batch,), which come first. For pairs inputs are (batch, 2, positions) and lengths (batch, 2). The metrics
    are those of ``ScoredTask``.

    Args:
        input_size: Number of different input tokens; the data module sets it on the command line.
        output_size: Number of classes; the data module sets it on the command line.
        pooling: What the class is told from: the ``mean`` over the sequence or its ``last`` step.
        bidirectional: Add a second stack that reads the sequence from its end, and join what both say.
        pairs: Read two sequences with the same stack, and tell the class from both, their product and difference.
        options: Of ``Task``.

    Raises:
        InputError: A size is out of range, or mixer or pooling are unknown.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        pooling: Literal["mean", "last"] = "mean",
        bidirectional: bool = False,
        pairs: bool = False,
        **options: Any,
    ) -> None:
        if pooling not in ("mean", "last"):
            raise InputError(f"pooling must be mean or last, got {pooling}")
        super().__init__(input_size, output_size, **options)
        self.pooling = pooling
        self.pairs = pairs
        self.backward_backbone = self._another_backbone() if bidirectional else None
        features = self.hparams["dim"] * (2 if bidirectional else 1)
        if pairs:
            self.head = nn.Sequential(nn.Linear(4 * features, features), nn.GELU(), nn.Linear(features, output_size))
        else:
            self.head = nn.Linear(features, output_size)

    def _another_backbone(self) -> Backbone:
        """A stack of the same kind and size as the first."""
        options = {name: self.hparams[name] for name in OPTIONS}
        return Backbone(self.hparams["dim"], self.hparams["depth"], self.hparams["mixer"], **options)

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]  # one answer, no state
        """Logits (batch, output_size) of sequences or pairs."""
        if self.pairs:
            a, b = self.encode(inputs.flatten(0, 1), lengths.flatten()).view(len(inputs), 2, -1).unbind(1)
            features = torch.cat([a, b, a * b, a - b], -1)
        else:
            features = self.encode(inputs, lengths)
        logits: Tensor = self.head(features)
        return logits

    def encode(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """What is known of each sequence: (batch, positions) tokens and (batch,) lengths to (batch, features)."""
        x = self.dropout(self.encoder(inputs))
        hidden = self.backbone(x)[0]
        read = [self.pool(hidden, lengths)]
        if self.backward_backbone is not None:
            hidden = self.backward_backbone(reverse_within(x, lengths))[0]
            read.append(self.pool(hidden, lengths))
        return torch.cat(read, -1)

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Mean or last of the first ``lengths`` of (batch, positions, dim): (batch, dim)."""
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths.unsqueeze(1)
        return hidden.float().mul(inside.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)

    def answers(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and labels, one for each example."""
        inputs, labels, lengths = batch
        return self(inputs, lengths), labels, torch.arange(len(labels), device=labels.device)

    def flops(self, length: int) -> float:
        """Those of both stacks; the head answers once, for a sequence or a pair."""
        stacks = 1 if self.backward_backbone is None else 2
        return stacks * flops(self.backbone, length) + products(self.head) / (length * (1 + self.pairs))

    def configure_model(self) -> None:
        """Compile the second stack too where that is asked for."""
        super().configure_model()
        if self.compile_backbone and self.backward_backbone is not None:
            self.backward_backbone.compile()


def reverse_within(x: Tensor, lengths: Tensor) -> Tensor:
    """Each sequence of (batch, positions, ...) backwards, what follows its end left where it is."""
    positions = torch.arange(x.shape[1], device=x.device)
    last = lengths.unsqueeze(1) - 1
    order = torch.where(positions <= last, last - positions, positions)
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), order]
