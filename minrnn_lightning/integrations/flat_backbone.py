"""``FlatBackbone``: a backbone with its state in one tensor, as the buffers of other libraries store states."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn import Backbone
from minrnn_lightning.nn.state import State
from minrnn_lightning.ops import state_dtype


class FlatBackbone(nn.Module):
    """A linear map to the width of a backbone, then the backbone, whose state is one tensor (batch, state_size).

    Its first column is 1 after a step, the others are the state of the backbone. A row of zeros is the state before the
    first step, a learned one included: that is how libraries start and restart an episode.

    Args:
        input_size: Features of the input.
        backbone: With a state of constant size.

    Raises:
        InputError: The state of the backbone grows with every step.
    """

    def __init__(self, input_size: int, backbone: Backbone) -> None:
        super().__init__()
        self.input_size = input_size
        self.dim = backbone.norm.normalized_shape[0]
        self.proj = nn.Linear(input_size, self.dim)
        self.backbone = backbone
        leaves, self.tree = tree_flatten(backbone.initial_state(1))
        with torch.no_grad():
            after, _ = tree_flatten(
                backbone.step(self.proj.weight.new_zeros(1, self.dim), backbone.initial_state(1))[1]
            )
        self.layout = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        if any(before.shape != later.shape for before, later in zip(leaves, after, strict=True)):
            raise InputError("the state must have a constant size: give attention a window in mixer_args")
        self.state_size = 1 + sum(prod(shape) for shape, _ in self.layout)

    def forward(self, x: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over whole sequences, in parallel over the length.

        Args:
            x: (batch, length, input_size).
            state: (batch, state_size), that before the first step.
            reset: Bool (batch, length), True at the first step of an episode.

        Returns:
            (batch, length, dim), and the state after the last step.
        """
        new = F.pad(self._is_new(state).unsqueeze(1), (0, x.shape[1] - 1))
        y, after = self.backbone(self.proj(x), self._unflatten(state), new if reset is None else new | reset)
        return y, self._flatten(after, len(x))

    def step(self, x_t: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of ``forward``: (batch, input_size) to (batch, dim), and the state; ``reset`` is (batch,)."""
        new = self._is_new(state)
        y, after = self.backbone.step(self.proj(x_t), self._unflatten(state), new if reset is None else new | reset)
        return y, self._flatten(after, len(x_t))

    def _is_new(self, state: Tensor) -> Tensor:
        return state[:, 0] == 0

    def _flatten(self, state: State, rows: int) -> Tensor:
        weight = self.proj.weight
        dtype = state_dtype(weight.dtype)
        leaves = (x.flatten(1).to(dtype) for x in tree_flatten(state)[0])
        return torch.cat([weight.new_ones(rows, 1, dtype=dtype), *leaves], 1)

    def _unflatten(self, state: Tensor) -> State:
        parts = torch.split(state[:, 1:], [prod(shape) for shape, _ in self.layout], 1)
        leaves = [x.reshape(-1, *shape) for x, (shape, _) in zip(parts, self.layout, strict=True)]
        masks = [dtype == torch.bool for _, dtype in self.layout]
        return tree_unflatten([x.bool() if mask else x for x, mask in zip(leaves, masks, strict=True)], self.tree)
