"""States of mixers and backbones: trees (tuples, lists) of tensors whose first dimension is the batch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from minrnn_lightning.nn.linear_views import is_quantized
from minrnn_lightning.ops.eager import state_dtype

State = Any  # a tree of tensors; floating-point ones are float32, or float64 for float64 inputs


def zero_state(weight: Tensor, *shape: int) -> Tensor:
    """Zeros in the type of the state of a model with this weight, on the device of the weight."""
    dtype = state_dtype(weight.dtype)
    if is_quantized(weight):
        return torch.zeros(shape, dtype=dtype, device=weight.device)
    return weight.new_zeros(shape, dtype=dtype)  # in a traced program on the device that the weight has then


def select_state(state: State, rows: Tensor | slice) -> State:
    """Select sequences of a batch, such as the episodes that go on.

    Args:
        state: That of a mixer, backbone or task.
        rows: Bool (batch,), or the indices of the rows, or a slice.

    Returns:
        The state of the selected rows alone.
    """
    return tree_map(lambda leaf: leaf[rows], state)


def where(mask: Tensor, state: State, other: State) -> State:
    """Take one state in some rows and another one in all others, as ``torch.where`` does.

    Args:
        mask: Bool (batch,).
        state: The state of the rows at which the mask is True.
        other: The state of the other rows, from the same model. A cache that grows by every step may have another
            length in it; the shorter one gets zeros before its first step, which are not visible.

    Returns:
        A state of all rows.
    """

    def choose(one: Tensor, two: Tensor) -> Tensor:
        if one.shape != two.shape:
            steps = max(one.shape[1], two.shape[1])
            one, two = (F.pad(x, (0, 0) * (x.dim() - 2) + (steps - x.shape[1], 0)) for x in (one, two))
        rows = mask.view(-1, *[1] * (one.dim() - 1))
        if one.dtype == torch.bool:  # for which onnxruntime has no Where
            return rows & one | ~rows & two
        return torch.where(rows, one, two)

    return tree_map(choose, state, other)
