"""States that a task carries from one batch to the next where the batches are contiguous streams."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from minrnn_lightning.lightning_internals import batches_used
from minrnn_lightning.nn.state import State, select_state
from minrnn_lightning.tasks.task import Task


def steps_of(batch: Any) -> dict[str, Tensor]:
    """What a batch says of its steps beside their contents: ``reset`` and ``delta_t``, as far as it has them."""
    given = {name: getattr(batch, name, None) for name in ("reset", "delta_t")}
    return {name: value for name, value in given.items() if value is not None}


class CarriedStates:
    """The states at the end of the last batch, one for training and one for evaluation, without their gradients.

    A training batch is known by its number, so that an optimizer that computes the loss of a batch several times starts
    from the same state each time, and a checkpoint made within a step has the state before the step. The state of
    training is stored with the rows of all processes, in their order.
    """

    def __init__(self) -> None:
        self._training: tuple[int, State, State] = (-1, None, None)  # number of the batch, states before and after it
        self._evaluation: State = None
        self._stored: State = None  # from a checkpoint, the rows of all processes

    def before(self, batch: Any, trainer: Trainer | None, training: bool) -> State:
        """The state from which a batch is computed; None for the initial one."""
        if not getattr(batch, "continues", False):
            return None
        if not training:
            return self._evaluation
        if self._stored is not None:
            self._training = (-1, None, _own_rows(self._stored, batch[0], trainer))
            self._stored = None
        number, before, after = self._training
        return before if trainer is not None and number == batches_used(trainer) else after

    def keep(self, before: State, after: State, trainer: Trainer | None, training: bool) -> None:
        """Keep the state after a batch."""
        after = tree_map(Tensor.detach, after)
        if training:
            self._stored = None
            self._training = (-1 if trainer is None else batches_used(trainer), before, after)
        else:
            self._evaluation = after

    def gathered(self, trainer: Trainer) -> State:
        """The state after the last batch that was used, with the rows of all processes; None if there is none."""
        if self._stored is not None:
            return self._stored
        number, before, after = self._training
        state = after if batches_used(trainer) > number else before
        if trainer.world_size == 1:
            return tree_map(Tensor.clone, state) if state is not None else None
        same = trainer.world_size // _share(trainer)[1]  # consecutive processes with the same rows
        gather = trainer.strategy.all_gather
        return None if state is None else tree_map(lambda x: gather(x)[::same].flatten(0, 1), state)

    def restore(self, state: State) -> None:
        """Continue from a state of ``gathered``, or from initial states if it is None."""
        self._training, self._stored = (-1, None, None), state


def _share(trainer: Trainer | None) -> tuple[int, int]:
    """Which share of the data this process reads, and the number of shares."""
    shared = None if trainer is None else trainer.distributed_sampler_kwargs
    return (shared["rank"], shared["num_replicas"]) if shared else (0, 1)


def _own_rows(state: State, inputs: Tensor, trainer: Trainer | None) -> State:
    """The rows of this process, on its device; None with a warning if the streams are others."""
    (rank, shares), rows = _share(trainer), len(inputs)
    stored = {len(leaf) for leaf in tree_leaves(state)}
    if stored and stored != {rows * shares}:
        rank_zero_warn(
            f"The checkpoint has the states of {max(stored)} streams, and this run has {rows * shares}: they begin "
            "with initial states; resume with the same batch_size and number of processes to continue exactly."
        )
        return None
    own = select_state(state, slice(rank * rows, (rank + 1) * rows))
    return tree_map(lambda leaf: leaf.to(inputs.device), own)


class CarryingTask(Task):
    """A task that goes on from the state at the end of the last batch where a batch says that it continues that one.

    The state is detached, so that gradients reach back to the beginning of a batch (truncated backpropagation through
    time). Training and evaluation have a state each. A checkpoint has that of training, with which a run that is
    resumed equals an uninterrupted one.
    """

    @cached_property
    def _carried(self) -> CarriedStates:
        return CarriedStates()

    def carry(self, batch: Any, function: Callable[[State], tuple[Tensor, State]]) -> Tensor:
        """Call a function with the state before a batch and keep the one after it.

        Args:
            batch: Whether it ``continues`` the batch before; a batch without that, such as a tuple, has no state.
            function: From a state, or None for the initial one, to outputs and the state after the last step.

        Returns:
            The outputs.
        """
        if not hasattr(batch, "continues"):
            return function(None)[0]
        trainer = self._trainer
        training = self.training if trainer is None else trainer.training
        before = self._carried.before(batch, trainer, training)
        outputs, after = function(before)
        self._carried.keep(before, after, trainer, training)
        return outputs

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
