"""TorchRL: ``BackboneModule``, the memory of a policy, in the place of TorchRL's ``LSTMModule`` or ``GRUModule``."""

from __future__ import annotations

from typing import Any

import torch

from minrnn_lightning.errors import missing_package
from minrnn_lightning.integrations.flat_backbone import FlatBackbone
from minrnn_lightning.nn import Backbone

try:
    from tensordict import TensorDictBase
    from tensordict.nn import TensorDictModuleBase
    from torchrl.data import Unbounded
    from torchrl.envs import TensorDictPrimer
    from torchrl.modules import recurrent_mode
except ImportError as error:
    raise missing_package("torchrl", "torchrl") from error


class BackboneModule(TensorDictModuleBase):
    """Any backbone as a module of TorchRL that reads and writes ``recurrent_state`` and restarts at ``is_init``.

    It takes single steps, as collectors need, and whole trajectories along the last dimension of the batch within
    ``set_recurrent_mode(True)``, as losses need: from the ``recurrent_state`` of the first step alone, and in parallel
    over the length, with a new episode at every step with ``is_init``. The state after the last step is then that of
    the output; those of the other steps are zeros, as TorchRL's own modules have it.

    ``InitTracker`` of the environment writes ``is_init``, and ``make_tensordict_primer`` makes the transform that
    starts with zeros, which are the initial state, even where it is learned.

    Args:
        input_size: Components of the input.
        backbone: The memory.
        in_key: Name of the input.
        out_key: Name of the output, of the width of the backbone.
        state_key: Name of the state; several modules in one policy need different ones.
        default_recurrent_mode: Whether inputs are trajectories where ``set_recurrent_mode`` says nothing.
    """

    def __init__(
        self,
        input_size: int,
        backbone: Backbone,
        *,
        in_key: str = "observation",
        out_key: str = "embed",
        state_key: str = "recurrent_state",
        default_recurrent_mode: bool = False,
    ) -> None:
        super().__init__()
        self.memory = FlatBackbone(input_size, backbone)
        self.in_keys, self.out_keys = [in_key, state_key, "is_init"], [out_key, ("next", state_key)]
        self.default_recurrent_mode = default_recurrent_mode

    @property
    def recurrent_mode(self) -> bool:
        """Whether inputs are trajectories."""
        mode = recurrent_mode()
        return self.default_recurrent_mode if mode is None else bool(mode)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Add the output and the next state."""
        x, state, is_init = (tensordict.get(key) for key in self.in_keys)
        if self.recurrent_mode:
            rows = x.shape[-2]
            state = state.reshape(-1, rows, self.memory.state_size)
            y, after = self.memory(x.reshape(len(state), rows, -1), state[:, 0], is_init.reshape(-1, rows))
            after = torch.cat([torch.zeros_like(state[:, 1:]), after.unsqueeze(1)], 1)
        else:
            state = state.reshape(-1, self.memory.state_size)
            y, after = self.memory.step(x.reshape(len(state), -1), state, is_init.reshape(-1))
        for key, value in zip(self.out_keys, (y, after), strict=True):
            tensordict.set(key, value.reshape(*x.shape[:-1], -1))
        return tensordict

    def make_tensordict_primer(self) -> Any:
        """The transform that adds the state to an environment, or to each of several."""
        return TensorDictPrimer({self.in_keys[1]: Unbounded(shape=(self.memory.state_size,))}, expand_specs=True)
