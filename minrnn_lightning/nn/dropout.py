"""Dropout whose random numbers do not take longer than the layers around it."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """``nn.Dropout``; on CPUs the probability is rounded to a multiple of 1/256, unless that would be 0 or 1.

    There PyTorch draws its random numbers in one thread, one at a time; this draws eight elements with each.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Zero elements at random and scale the others up, in training only."""
        dropped = round(self.p * 256)
        if not self.training or dropped in (0, 256) or not input.is_cpu or torch.compiler.is_compiling():
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        keep = draws.view(torch.uint8)[: input.numel()].view(input.shape) >= dropped
        kept = keep.view(torch.int8).to(input.dtype)  # from bool it would take five times as long
        return input * kept.mul_(256 / (256 - dropped))  # one factor: one product forward and one backward
