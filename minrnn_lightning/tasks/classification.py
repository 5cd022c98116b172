"""One label for each sequence, or for each pair of sequences: the Long Range Arena."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from minrnn_lightning.batches import LabelledBatch
from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.size import flops, products
from minrnn_lightning.tasks.scored import ScoredTask


class ClassificationTask(ScoredTask):
    """Classify a padded token sequence; padding does not affect the result.

    A batch is a ``LabelledBatch``: tokens int64 (batch, length), labels int64 (batch,) and the number of tokens before
    the padding, int64 (batch,). For pairs, inputs are (batch, 2, length) and lengths (batch, 2). A
    ``TimedLabelledBatch`` has the times between the steps as well. The metrics are those of ``ScoredTask``.

    Args:
        input_size: Number of different input tokens; the data module sets it on the command line.
        output_size: Number of classes; the data module sets it on the command line.
        pooling: Features to classify: the ``mean`` over the sequence or those of its ``last`` step.
        bidirectional: Add a second backbone that reads the sequence in reverse, and concatenate the features of both.
        pairs: Read two sequences with the same backbone, and classify both, their product and their difference.
        options: Of ``Task``.

    Raises:
        InputError: A size is out of range, or the mixer or pooling is unknown.
    """

    batch_type = LabelledBatch

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
        self.encoder = nn.Embedding(input_size, self.dim)
        self.backbone = self.make_backbone()
        # These random numbers initialised a head that nothing used; without them a seed would give other weights than
        # those of published results.
        torch.rand(output_size, self.dim)
        backward_backbone = self.make_backbone() if bidirectional else None
        features = self.dim * (2 if bidirectional else 1)
        if pairs:
            self.head = nn.Sequential(nn.Linear(4 * features, features), nn.GELU(), nn.Linear(features, output_size))
        else:
            self.head = nn.Linear(features, output_size)
        self.backward_backbone = backward_backbone  # after the head, as in the optimizer states of checkpoints

    def forward(self, inputs: Tensor, lengths: Tensor, delta_t: Tensor | None = None) -> Tensor:
        """Compute the logits (batch, output_size) of a batch's inputs, lengths and times."""
        if self.pairs:
            times = None if delta_t is None else delta_t.flatten(0, 1)
            hidden = self.encode(inputs.flatten(0, 1), lengths.flatten(), times)
            a, b = hidden.view(inputs.shape[0], 2, -1).unbind(1)
            features = torch.cat([a, b, a * b, a - b], -1)
        else:
            features = self.encode(inputs, lengths, delta_t)
        logits: Tensor = self.head(features)
        return logits

    def encode(self, inputs: Tensor, lengths: Tensor, delta_t: Tensor | None = None) -> Tensor:
        """Compute features (batch, features) of tokens (batch, length) with lengths (batch,).

        Args:
            inputs: The tokens.
            lengths: Tokens before the padding.
            delta_t: The time since the step before, (batch, length), for mixers that are ``timed``.
        """
        x = self.dropout(self.encoder(inputs))
        hidden = self.backbone(x, delta_t=delta_t)[0]
        features = [self.pool(hidden, lengths)]
        if self.backward_backbone is not None:
            times = None
            if delta_t is not None:  # back from the step after; before the first step, as in the other direction
                times = torch.cat([delta_t[:, :1], reverse_within(delta_t, lengths)[:, :-1]], 1)
            hidden = self.backward_backbone(reverse_within(x, lengths), delta_t=times)[0]
            features.append(self.pool(hidden, lengths))
        return torch.cat(features, -1)

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Mean over, or last of, the first ``lengths`` steps of (batch, length, dim): (batch, dim)."""
        if self.pooling == "last":
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]
        mask = torch.arange(hidden.shape[1], device=hidden.device) < lengths.unsqueeze(1)
        return hidden.float().mul(mask.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)

    def logits_and_targets(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and labels, one for each example of the batch."""
        inputs, labels, lengths = batch[:3]
        logits = self(inputs, lengths, getattr(batch, "delta_t", None))
        return logits, labels, torch.arange(len(labels), device=labels.device)

    def flops(self, length: int) -> float:
        """Operations of a forward pass per token: of both backbones, and of the head once for a sequence or pair."""
        backbones = 1 if self.backward_backbone is None else 2
        return backbones * flops(self.backbone, length) + products(self.head) / (length * (1 + self.pairs))

    def configure_model(self) -> None:
        """Compile the second backbone too where ``compile`` is set."""
        super().configure_model()
        if self.compile_backbone and self.backward_backbone is not None:
            self.backward_backbone.compile()


def reverse_within(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each sequence of (batch, length, ...), and leave the padding after it unchanged."""
    positions = torch.arange(x.shape[1], device=x.device)
    last = lengths.unsqueeze(1) - 1
    order = torch.where(positions <= last, last - positions, positions)
    return x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), order]
