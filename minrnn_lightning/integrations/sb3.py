"""Stable-Baselines3: ``BackbonePolicy``, a policy of sb3-contrib's ``RecurrentPPO`` whose memory is any backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minrnn_lightning.errors import missing_package
from minrnn_lightning.integrations.flat_backbone import FlatBackbone
from minrnn_lightning.nn import Backbone

try:
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
except ImportError as error:
    raise missing_package("sb3-contrib", "sb3") from error


class Memory(FlatBackbone):
    """A backbone in the place of ``nn.LSTM``: its state in two halves, (1, batch, hidden_size) each.

    Args:
        input_size: Features of the input.
        backbone: The memory.
    """

    num_layers = 1

    def __init__(self, input_size: int, backbone: Backbone) -> None:
        super().__init__(input_size, backbone)
        self.hidden_size = (self.state_size + 1) // 2


class BackbonePolicy(RecurrentActorCriticPolicy):
    """Actor and critic of ``RecurrentPPO``, each with a backbone as its memory, trained in parallel over the length.

    ``RecurrentPPO(BackbonePolicy, env, policy_kwargs={"backbone": {"dim": 64, "depth": 1, "mixer": "mingru"}})``.

    Args:
        *args: Spaces and learning rate, which ``RecurrentPPO`` gives.
        backbone: Arguments of ``Backbone``.
        options: Of ``RecurrentActorCriticPolicy``, such as ``enable_critic_lstm``, ``shared_lstm`` and ``net_arch``;
            those of the LSTM itself have no effect.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, *args: Any, backbone: Mapping[str, Any], **options: Any) -> None:
        super().__init__(*args, **{**options, "lstm_hidden_size": backbone["dim"], "n_lstm_layers": 1})
        self.backbone = dict(backbone)
        for name in ("lstm_actor", "lstm_critic"):
            if getattr(self, name) is not None:
                setattr(self, name, Memory(self.features_dim, Backbone(**backbone)))
        self.lstm_hidden_state_shape = (1, 1, self.lstm_actor.hidden_size)
        options = {"lr": self.optimizer.param_groups[0]["lr"], **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), **options)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "backbone": self.backbone}

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
    ) -> Any:
        """(batch · length, features) to (batch · length, dim), from and to the two halves of the state."""
        state = torch.cat(lstm_states, -1)[0, :, : lstm.state_size]
        x = features.reshape(len(state), -1, lstm.input_size)
        reset = episode_starts.reshape(len(state), -1) > 0
        if x.shape[1] == 1:
            y, state = lstm.step(x[:, 0], state, reset[:, 0])
        else:
            y, state = lstm(x, state, reset)
        hidden, cell = F.pad(state, (0, 2 * lstm.hidden_size - lstm.state_size)).unsqueeze(0).chunk(2, -1)
        return y.reshape(len(features), -1), (hidden, cell)
