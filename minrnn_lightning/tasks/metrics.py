"""Means over all items, independent of how they are divided into batches and processes."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from minrnn_lightning.batches import IGNORED


def mean_cross_entropy(logits: Tensor, targets: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy in nats per target, where targets of -100 are left out.

    It is 0 where there is none, so that such a batch has no effect.

    Args:
        logits: (..., classes).
        targets: int64 (...).
        count: Number of targets, if these are a part of those of which it is the mean.
    """
    nats = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    count = (targets != IGNORED).sum() if count is None else torch.as_tensor(count, device=nats.device)
    return nats / count.clamp(min=1)


class Mean(Metric):
    """Mean over all items of all batches and processes, of values that are means over several items each.

    A value that is NaN makes the mean NaN (``torchmetrics.MeanMetric`` ignores it, which would hide that a model
    has diverged in one batch). The mean of an empty batch is ignored.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value: Tensor, items: Tensor | int, units: Tensor | int | None = None) -> None:
        """Add a batch.

        Args:
            value: Mean over the items of the batch, a scalar.
            items: Number of items.
            units: Divisor of the sum over the items, if it is not their number: the characters of the tokens, for a
                mean per character.
        """
        items = torch.as_tensor(items, device=value.device)
        # Lightning makes the empty sum bfloat16 with precision bf16-true, in which a sum has only two or three digits;
        # Apple's GPUs have no float64.
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        # The mean over no items is 0/0, but there is nothing to add.
        self.total = self.total.to(wide) + torch.where(items > 0, value.detach().to(wide) * items, 0.0)
        self.count = self.count + (items if units is None else units)

    def compute(self) -> Tensor:
        """The mean; NaN without any item."""
        return (self.total / self.count).float()


class Perplexity(Mean):
    """The exponential of the mean of values in nats."""

    def compute(self) -> Tensor:
        """The perplexity."""
        return super().compute().exp()
