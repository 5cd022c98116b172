"""Dividing the items of a held-out split, or of an epoch, among the processes that share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def batches_per_process(items: int, batch_size: int, world_size: int) -> int:
    """The number of batches that every process has when the items are divided as evenly as possible.

    Args:
        items: Number of items, at least ``world_size``.
        batch_size: Most items in a batch of one process, except where equal numbers of batches need more.
        world_size: Number of processes.
    """
    return min(-(-items // (batch_size * world_size)), items // world_size)


def split_into_batches(items: npt.NDArray[Any], batch_size: int, world_size: int) -> list[npt.NDArray[Any]]:
    """Divide items, along their first axis, into the batches of all processes; process r has those from r on.

    Every process has equally many batches, every item is in exactly one of them, and sizes differ by at most one: no
    process waits for another or repeats an item.

    Args:
        items: At least ``world_size`` of them, (items, ...).
        batch_size: Most items in a batch of one process, except where equal numbers of batches need more.
        world_size: Number of processes.

    Returns:
        The batches; those of one process are every ``world_size``-th, beginning with the process's rank.
    """
    return np.array_split(items, batches_per_process(len(items), batch_size, world_size) * world_size)
