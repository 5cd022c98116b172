"""Language models as plain modules, which generate text without Lightning."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from minrnn_lightning.nn.backbone import Backbone
from minrnn_lightning.nn.dropout import Dropout
from minrnn_lightning.nn.state import State


class EncoderBackboneHead(nn.Module):
    """Encoder, backbone and head, applied to all steps in parallel or one at a time.

    A subclass makes the modules.
    """

    encoder: nn.Module
    dropout: Dropout
    backbone: Backbone
    head: nn.Module

    def forward(
        self, inputs: Tensor, state: State = None, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Compute the logits of every step.

        Args:
            inputs: Tokens, int64 (batch, length).
            state: As for ``Backbone.forward``.
            reset: As for ``Backbone.forward``.
            delta_t: As for ``Backbone.forward``.

        Returns:
            Logits (batch, length, output_size), and the state after the last step.
        """
        hidden, state = self.backbone(self.dropout(self.encoder(inputs)), state, reset, delta_t=delta_t)
        return self.head(hidden), state

    def step(
        self, token: Tensor, state: State, reset: Tensor | None = None, *, delta_t: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One step of ``forward`` at constant cost.

        Args:
            token: int64 (batch,).
            state: As for ``Backbone.step``.
            reset: As for ``Backbone.step``.
            delta_t: As for ``Backbone.step``.

        Returns:
            Logits (batch, output_size), and the state.
        """
        hidden, state = self.backbone.step(self.dropout(self.encoder(token)), state, reset, delta_t=delta_t)
        return self.head(hidden), state

    def initial_state(self, batch_size: int) -> State:
        """The state before the first step."""
        return self.backbone.initial_state(batch_size)


class LanguageModel(EncoderBackboneHead):
    """The model of a ``LanguageTask``, for generation.

    Args:
        hyper_parameters: Those of the task; what is about its training is not used.

    Raises:
        KeyError: One that the model needs is missing.
        InputError: A size is out of range, or a mixer unknown.
    """

    def __init__(self, hyper_parameters: Mapping[str, Any]) -> None:
        super().__init__()
        names = inspect.signature(Backbone).parameters.keys() & hyper_parameters.keys()  # older checkpoints have fewer
        options, dim = {name: hyper_parameters[name] for name in names}, hyper_parameters["dim"]
        self.encoder = nn.Embedding(hyper_parameters["input_size"], dim)
        self.dropout = Dropout(0.0)  # which there is in training only
        self.backbone = Backbone(**options)
        self.head = nn.Linear(dim, hyper_parameters["output_size"], bias=False)
