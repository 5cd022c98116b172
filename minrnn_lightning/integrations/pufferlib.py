"""PufferLib: ``load_policy`` reads the weights of its default policy, whose memory is a MinGRU with highway gates.

The layout is that of ``pufferlib/models.py`` and of ``save_weights`` in ``pufferlib/torch_pufferl.py`` of PufferLib 4
(https://github.com/PufferAI/PufferLib, commit 0eed1d6): a state dict of ``DefaultEncoder``, ``MinGRU`` and
``DefaultDecoder``. The raw numbers that its CUDA program writes have not been confirmed and are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.mixers import MinGRUMixer
from minrnn_lightning.nn.state import State

ENCODER, VALUE, LAYERS = "encoder.encoder.", "decoder.value_function.", "network.layers."
DECODERS = ("decoder.decoder.", "decoder.decoder_mean.")  # of discrete and of continuous actions
LOG_STD = "decoder.decoder_logstd"


class PufferPolicy(nn.Module):
    """Linear encoder, layers of minGRU with highway gates, and linear heads for actions and values.

    Args:
        weights: A state dict of PufferLib's default policy.

    Raises:
        KeyError: A tensor is missing.
        ValueError: There is one too many.
        RuntimeError: A shape does not fit.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        weights = dict(weights)
        decoder = next((name for name in DECODERS if f"{name}weight" in weights), DECODERS[0])
        self.encoder, self.decoder, self.value = (_linear(weights, name) for name in (ENCODER, decoder, VALUE))
        dim = self.encoder.out_features
        self.log_std = nn.Parameter(weights.pop(LOG_STD)[0]) if decoder == DECODERS[1] else None
        layers = nn.ModuleList(MinGRUMixer(dim, highway=True) for _ in range(len(weights)))
        self.layers = cast("Sequence[MinGRUMixer]", layers)
        for i, layer in enumerate(self.layers):
            candidate, gate, highway = weights.pop(f"{LAYERS}{i}.weight").chunk(3)
            zeros = {"rnn.bias_ih_l0": torch.zeros(2 * dim), "out.bias": torch.zeros(dim)}
            layer.load_state_dict({"rnn.weight_ih_l0": torch.cat([gate, candidate]), "out.weight": highway, **zeros})

    def forward(
        self, observations: Tensor, state: State = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Logits (or means), values and the last state, in parallel over the length.

        Args:
            observations: (batch, length, observation_size), of any type, as many environments give bytes.
            state: That of ``initial_state`` if None.
            reset: Bool (batch, length), True at the first step of an episode.
        """
        x, after = self._encode(observations), []
        for layer, before in zip(self.layers, state or [None] * len(self.layers), strict=True):
            x, new = layer(x, before, reset)
            after.append(new)
        return self.decoder(x), self.value(x).squeeze(-1), after

    def step(self, observation: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, Tensor, State]:
        """One step of ``forward``: (batch, observation_size), and ``reset`` is (batch,)."""
        x, after = self._encode(observation), []
        for layer, before in zip(self.layers, state, strict=True):
            x, new = layer.step(x, before, reset)
            after.append(new)
        return self.decoder(x), self.value(x).squeeze(-1), after

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""
        return [layer.initial_state(batch_size) for layer in self.layers]

    def _encode(self, observations: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(observations.to(self.encoder.weight.dtype))
        return encoded


def load_policy(path: str | Path) -> PufferPolicy:
    """Read a checkpoint of PufferLib's PyTorch backend, without unpickling code.

    Args:
        path: What ``save_weights`` wrote.

    Raises:
        InputError: The file is none, or of another policy than the default one.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return PufferPolicy({name.replace("module.", ""): value for name, value in weights.items()})
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (UnpicklingError, AttributeError, RuntimeError, ValueError, LookupError, EOFError) as error:
        raise InputError(
            f"{path} is not a checkpoint of the default policy of PufferLib's PyTorch backend, whose tensors are "
            f"{ENCODER}weight, {LAYERS}0.weight and so on, {DECODERS[0]}weight and {VALUE}weight"
        ) from error


def _linear(weights: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = weights.pop(f"{name}weight"), weights.pop(f"{name}bias")
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear
