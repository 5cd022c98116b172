"""rsl-rl: ``BackboneModel``, an actor or critic whose memory is any backbone, with the exports of the runner."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import missing_package
from minrnn_lightning.integrations.flat_backbone import FlatBackbone
from minrnn_lightning.nn import Backbone

try:
    from rsl_rl.models import RNNModel
except ImportError as error:
    raise missing_package("rsl-rl-lib", "rsl-rl") from error


class Memory(FlatBackbone):
    """A backbone in the place of ``nn.GRU``: the length comes first, and the state is (1, batch, state_size)."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(length, batch, input_size) to (length, batch, dim), and the state; zeros if None."""
        before = x.new_zeros(x.shape[1], self.state_size) if state is None else state[0]
        if x.shape[0] == 1:
            y, after = self.step(x[0], before)
            return y.unsqueeze(0), after.unsqueeze(0)
        y, after = super().forward(x.transpose(0, 1), before)
        return y.transpose(0, 1), after.unsqueeze(0)


class ExportedStep(nn.Module):
    """One step of a policy without noise, with the state as an input and an output.

    Args:
        model: The policy, which is copied.
    """

    is_recurrent = True
    input_names, output_names = ("obs", "h_in"), ("actions", "h_out")

    def __init__(self, model: RNNModel) -> None:
        super().__init__()
        self.normalizer, self.memory, self.mlp = map(copy.deepcopy, (model.obs_normalizer, model.rnn.rnn, model.mlp))
        spread = model.distribution
        self.actions = nn.Identity() if spread is None else spread.as_deterministic_output_module()

    def forward(self, obs: Tensor, h_in: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, observations) and the state to (batch, actions) and the state."""
        y, h_out = self.memory(self.normalizer(obs).unsqueeze(0), h_in)
        return self.actions(self.mlp(y.squeeze(0))), h_out

    def get_dummy_inputs(self) -> tuple[Tensor, Tensor]:
        """An observation and the state before the first step, of one environment."""
        return torch.zeros(1, self.memory.input_size), torch.zeros(1, 1, self.memory.state_size)


class ExportedPolicy(nn.Module):
    """A policy of one environment for TorchScript, which keeps its state from step to step.

    Args:
        step: On the CPU.
    """

    hidden_state: Tensor

    def __init__(self, step: ExportedStep) -> None:
        super().__init__()
        inputs = step.get_dummy_inputs()
        self.step = torch.jit.trace(step, inputs)  # type: ignore[no-untyped-call]
        self.register_buffer("hidden_state", inputs[1])

    def forward(self, obs: Tensor) -> Tensor:
        """(1, observations) to (1, actions)."""
        actions, state = self.step(obs, self.hidden_state)
        self.hidden_state[:] = state
        return actions  # type: ignore[no-any-return]

    @torch.jit.export
    def reset(self) -> None:
        """Start an episode."""
        self.hidden_state[:] = 0.0


class BackboneModel(RNNModel):
    """Actor or critic with a backbone as its memory, trained in parallel over the length.

    In the configuration of the runner: ``"class_name": "minrnn_lightning.integrations.rsl_rl:BackboneModel",
    "backbone": {"dim": 64, "depth": 1, "mixer": "mingru"}``.

    Args:
        *args: Observations and sizes, which the algorithm gives.
        backbone: Arguments of ``Backbone``.
        options: Of ``RNNModel``; those of the RNN itself have no effect.
    """

    def __init__(self, *args: Any, backbone: Mapping[str, Any], **options: Any) -> None:
        super().__init__(*args, **{**options, "rnn_hidden_dim": backbone["dim"], "rnn_num_layers": 1})
        self.rnn.rnn = Memory(self.obs_dim, Backbone(**backbone))

    def as_onnx(self, verbose: bool = False) -> ExportedStep:
        """A step from observations and state to actions and state."""
        return ExportedStep(self)

    def as_jit(self) -> ExportedPolicy:
        """A step from an observation to an action, with the state inside."""
        return ExportedPolicy(ExportedStep(self).cpu().eval())
