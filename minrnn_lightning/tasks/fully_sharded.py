"""FSDP2: the parameters of a task divided among processes, as ``torch.distributed.tensor.DTensor``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def fully_shard(task: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Divide the parameters of each block, and those of each other module of a task, by their first dimension.

    The task itself is not a unit, as its training step does not begin with its ``forward``.

    Args:
        task: The task, whose modules are changed; those that are divided already are left as they are.
        blocks: Modules in it that are gathered one at a time.
        mesh: The processes.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp import fully_shard as shard

    for module in (*blocks, *task.children()):
        if not isinstance(module, FSDPModule) and any(True for _ in module.parameters()):
            shard(module, mesh=mesh)


def complete(x: Tensor) -> Tensor:
    """The tensor of which each process may hold a part."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def divide(x: Tensor, like: Tensor) -> Tensor:
    """A complete tensor that is the same on every process, divided as another one of its shape is."""
    if not isinstance(like, DTensor):
        return x
    everywhere = DTensor.from_local(x, like.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=like.placements)
