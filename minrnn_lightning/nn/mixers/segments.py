"""Splits a batch of sequences at their resets."""

import torch
from torch import Tensor


def split_at_resets(x: Tensor, reset: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Cut every sequence before its resets.

    Args:
        x: (batch, length, dim), not empty.
        reset: Bool (batch, length), True at the first step of a new sequence.

    Returns:
        The segments as rows, (segments, longest, dim), with zeros after their ends, and the row and column of each
        step, (batch, length) both: indexing rows with them restores the layout of ``x``.
    """
    positions = torch.arange(reset.shape[1], device=reset.device)
    starts = reset | (positions == 0)
    row = starts.flatten().cumsum(0).view_as(starts) - 1
    column = positions - torch.where(starts, positions, 0).cummax(1).values
    rows = x.new_zeros(int(row[-1, -1]) + 1, int(column.max()) + 1, x.shape[2])
    return rows.index_put((row, column), x), (row, column)
