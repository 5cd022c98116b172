"""Sequence parallelism: the parts of a sequence are on several processes, all of which have the complete model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.ops.sharded import position, total

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

NEED_ALL = (nn.RNNBase, nn.MultiheadAttention, nn.Conv1d)  # layers along the length, MinGRU and MinLSTM among them


class Shardable(nn.Module):
    """A module that can take one part of a sequence, where it needs something of the other parts.

    Attributes:
        group: The processes with a part each, in the order of their ranks; None where sequences are complete.
        shardable: Whether the module can take a part.
    """

    group: ProcessGroup | None = None
    shardable = True


@contextmanager
def sequence_parallel(model: nn.Module, group: ProcessGroup) -> Iterator[None]:
    """Within the context, the sequences that a model takes are parts of longer ones, one on each process of a group.

    Outputs are those of the complete sequence at the steps of this process's part. A state that is given is the one
    before the complete sequence, a state that is returned the one after it, without a gradient. The gradient is that
    of the sum of the losses of all processes, as far as it comes from this process's part: its sum over the processes
    is the gradient of a single process with the complete sequence.

    Args:
        model: A model of which at least the mixers are ``shardable``, such as a ``Backbone`` of minGRU or minLSTM.
        group: The processes, of which this is one, in the order of the parts.

    Raises:
        InputError: A mixer needs all steps at once, chunks are asked for, or this process is not in the group.
    """
    check_shardable(model)
    position(group)
    modules = [module for module in model.modules() if isinstance(module, Shardable)]
    for module in modules:
        module.group = group
    try:
        yield
    finally:
        for module in modules:
            module.group = None


def mean_of_parts(loss: Tensor, count: Tensor, group: ProcessGroup) -> Tensor:
    """The mean loss of complete sequences, from that of one part of them on each process of a group.

    Args:
        loss: The mean over the targets of this process's part, a scalar.
        count: The number of these targets, a scalar.
        group: The processes.

    Returns:
        The mean over the targets of all parts, a scalar. Its gradient is that of the part, so scaled that the mean of
        the gradients of all processes is the gradient of the mean loss.
    """
    count = count.to(torch.float32)
    loss_sum, targets = total(torch.stack([loss.to(torch.float32) * count, count]), group)
    targets = targets.clamp(min=1)
    share: Tensor = loss * (count * position(group)[1] / targets)
    mean: Tensor = loss_sum / targets
    return share + (mean - share).detach()


def check_shardable(model: nn.Module) -> None:
    """Refuse a model that cannot take a part of a sequence.

    Raises:
        InputError: A mixer needs all steps at once, or chunks are asked for.
    """
    for module in model.modules():
        shardable = module.shardable if isinstance(module, Shardable) else not isinstance(module, NEED_ALL)
        if not shardable:
            raise InputError(
                f"{type(module).__name__} needs all steps of a sequence, which sequence parallelism divides among "
                "processes: use the mixers mingru, minlstm or gated_mingru alone, or ddp instead"
            )
        if isinstance(module, Shardable) and getattr(module, "chunk", None) is not None:
            raise InputError(f"chunk must be null with sequence parallelism, got {module.chunk}")
