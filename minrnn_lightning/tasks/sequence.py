"""``SequenceTask``: an output at every step of a sequence of tokens."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from minrnn_lightning.nn.state import State
from minrnn_lightning.tasks.carried import CarriedStates
from minrnn_lightning.tasks.task import Task


class SequenceTask(Task):
    """Encoder, backbone and head, applied to all steps in parallel or one at a time; the base of language and tagging.

    Args:
        args: Of ``Task``.
        options: Of ``Task``.

    Raises:
        InputError: A size is out of range, the mixer unknown, or the number of parameters out of reach.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._carried = CarriedStates()
        self.encoder = self.make_encoder(self.dim)
        self.backbone = self.make_backbone()
        self.head = self.make_head(self.dim)

    def make_encoder(self, dim: int) -> nn.Module:
        """Make the module that maps int64 tokens (batch, length) to (batch, length, dim)."""
        return nn.Embedding(self.input_size, dim)

    def make_head(self, dim: int) -> nn.Module:
        """Make the module that maps (..., dim) to logits (..., output_size)."""
        return nn.Linear(dim, self.output_size, bias=False)

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

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits (batch, length, output_size) and targets, a scalar to minimise."""

    def batch_loss(self, batch: Sequence[Tensor]) -> Tensor:
        """The mean loss of a batch of inputs and targets."""
        return self.loss(self._carry(self, batch[0], batch), batch[1])

    def logits(self, batch: Sequence[Tensor]) -> Tensor:
        """The logits of a batch, (batch, length, output_size)."""
        logits: Tensor = self._carry(self, batch[0], batch)
        return logits

    def hidden(self, batch: Sequence[Tensor]) -> Tensor:
        """The outputs of the backbone for a batch, (batch, length, dim)."""
        return self._carry(self.backbone, self.dropout(self.encoder(batch[0])), batch)

    def _carry(self, function: Callable[..., tuple[Tensor, State]], x: Tensor, batch: Any) -> Tensor:
        """Call the task or its backbone with what the batch says of state, resets and times.

        A batch that is no stream, such as a tuple of inputs and targets, has none of these.
        """
        given = {name: getattr(batch, name, None) for name in ("reset", "delta_t")}
        given = {name: value for name, value in given.items() if value is not None}
        if not hasattr(batch, "continues"):
            return function(x, **given)[0]
        trainer = self._trainer
        training = self.training if trainer is None else trainer.training
        before = self._carried.before(batch, trainer, training)
        y, after = function(x, before, **given)
        self._carried.keep(before, after, trainer, training)
        return y

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the training streams, where there are any."""
        super().on_save_checkpoint(checkpoint)
        if (state := self._carried.gathered(self.trainer)) is not None:
            checkpoint["streams"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let a run that is resumed continue the streams."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._carried.restore(checkpoint.get("streams"))
