"""``Mean``: a mean over everything that was counted, however it came in batches."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """Mean of values that stand for several items each, over all batches and processes.

    A value that is NaN makes the mean NaN (``torchmetrics.MeanMetric`` leaves it out, and a model that has diverged in
    one batch would look as if it had not). A value that stands for no item, the mean of an empty batch, is left out.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, value: Tensor, count: Tensor | int) -> None:
        """Add the mean of so many items."""
        items = torch.as_tensor(count, device=value.device, dtype=self.total.dtype)
        self.total += torch.where(items > 0, value.detach().to(self.total.dtype) * items, 0.0)
        self.count += items

    def compute(self) -> Tensor:
        """The mean; NaN where nothing was counted."""
        return self.total / self.count
