"""Dropout whose random numbers do not take longer than the layers around it."""

import torch
from torch import Tensor, nn

from minrnn_lightning.nn.fused import add_dropped, can_fuse, is_transformed


class Dropout(nn.Dropout):
    """``nn.Dropout``; on CPUs the probability is rounded to a multiple of 1/256, unless that would be 0 or 1.

    There PyTorch draws its random numbers in one thread, one at a time; this draws eight elements with each.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Zero elements at random and scale the others up, in training only."""
        dropped = self._dropped(input)
        if dropped is None:
            return super().forward(input)
        kept = (_draw(input) >= dropped).view(torch.int8).to(input.dtype)  # from bool it would take five times as long
        return input * kept.mul_(256 / (256 - dropped))  # one factor: one product forward and one backward

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """``x`` plus what this makes of ``y``, of the same shape, in the type of ``x``."""
        dropped = self._dropped(y) if self.training and self.p else 0
        fits = type(self) is Dropout and dropped is not None and can_fuse(x, self) and can_fuse(y)
        if fits and x.dim() == 3 and x.shape == y.shape:
            return add_dropped(x, y, _draw(y) if dropped else None, dropped or 0)
        y = self(y).to(x.dtype)  # a sum of two types takes twice as long as the cast and the sum
        return x + y

    def _dropped(self, x: Tensor) -> int | None:
        """How many of 256 elements are dropped; None where PyTorch's dropout is to do it."""
        dropped = round(self.p * 256)
        if not self.training or dropped in (0, 256) or not x.is_cpu or torch.compiler.is_compiling():
            return None
        return None if is_transformed() else dropped  # vmap knows PyTorch's own random operators only


def _draw(x: Tensor) -> Tensor:
    """Random numbers from 0 to 255 in the shape of ``x``, uint8."""
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return draws.view(torch.uint8)[: x.numel()].view(x.shape)
