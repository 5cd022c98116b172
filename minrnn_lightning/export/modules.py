"""Models as modules with flat tensors in and out, which have names and sizes that may vary: what every format holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from minrnn_lightning.nn.state import State

BATCH, LENGTH = 2, 9  # sizes of the examples; an exporter would take a size of 1 for a fixed one
MOST_BATCH, MOST_LENGTH = 1 << 16, 1 << 24  # so that exporters can prove that sizes do not overflow
OLDEST = 2, 13  # the oldest PyTorch that exports every model; others lack operators, or take some sizes for fixed


def too_old() -> str:
    """What a message says of a PyTorch that is older than ``OLDEST``; "" where it is not."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= OLDEST:
        return ""
    return f"needs at least torch {'.'.join(map(str, OLDEST))}, and this is {torch.__version__}"


class Input(NamedTuple):
    """A tensor that a module takes."""

    name: str
    example: Tensor
    varying: dict[int, str]  # its dimensions that may have any size, with their names


class FlatModule(nn.Module, ABC):
    """A module that takes the tensors ``inputs``, in this order, and returns the tensors ``outputs`` as a tuple.

    A state is the leaves of the model's tree: inputs ``state_0``, ``state_1``, … and outputs ``next_state_0``, ….

    Args:
        model: What is run.
        inputs: All inputs but the state and ``reset``.
        output: Name of the result.
        start: The state before the first step of ``BATCH`` sequences; None if there is none.
        state: A state that has been used, whose sizes vary where they differ from those of ``start``.
        batch_dim: The dimension of the batch in the leaves of a state.
        reset: ``reset``, the last input; None for none.
    """

    def __init__(
        self,
        model: Any,
        inputs: list[Input],
        output: str,
        *,
        start: State = None,
        state: State = None,
        batch_dim: int = 0,
        reset: Input | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.given, self.has_reset, self.has_state = len(inputs), reset is not None, start is not None
        self.starts, self.spec = tree_flatten(() if start is None else start)
        self.batch_dim = batch_dim
        leaves = tree_leaves(() if state is None else state)
        names = [f"state_{index}" for index in range(len(leaves))]
        self.inputs, self.outputs = list(inputs), [output, *(f"next_{name}" for name in names)]
        for name, leaf, first in zip(names, leaves, self.starts, strict=True):
            varying = {d: "past" for d in range(leaf.dim()) if leaf.shape[d] != first.shape[d]}
            self.inputs.append(Input(name, leaf.detach().clone(), {batch_dim: "batch", **varying}))
        self.inputs += [] if reset is None else [reset]

    @abstractmethod
    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """The result, and the state after it."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Take the tensors ``inputs`` and return the tensors ``outputs``."""
        given, rest = tensors[: self.given], list(tensors[self.given :])
        reset = rest.pop() if self.has_reset else None
        state = tree_unflatten(rest, self.spec) if self.has_state else None  # without a tensor for a pointwise mixer
        output, state = self.run(*given, state=state, reset=reset)
        return (output, *tree_leaves(state)) if self.has_state else (output,)

    @property
    def examples(self) -> tuple[Tensor, ...]:
        """An example of each input."""
        return tuple(each.example for each in self.inputs)

    def dynamic_shapes(self) -> tuple[tuple[dict[int, Any], ...]]:
        """The argument of ``torch.export.export`` of this name."""
        most = {"batch": MOST_BATCH, "length": MOST_LENGTH, "past": MOST_LENGTH}
        dims = {name: Dim(name, max=size) for name, size in most.items()}
        return (tuple({d: dims[name] for d, name in each.varying.items()} for each in self.inputs),)

    def initial_values(self) -> dict[str, Any]:
        """The state before the first step of a sequence, without its batch: by name 0.0, or nested lists."""
        rows = [leaf.select(self.batch_dim, 0) for leaf in self.starts]
        return {f"state_{i}": row.tolist() if row.any() else 0.0 for i, row in enumerate(rows)}


class Step(FlatModule):
    """One step of a layer, a mixer, a backbone or a task with an output at every step."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``input`` (batch, …) to ``output`` or ``logits``."""
        options = {} if reset is None else {"reset": reset}
        result: tuple[Tensor, State] = self.model.step(*given, state, **options)
        return result


class Sequence(FlatModule):
    """A sequence through a layer, a mixer, a backbone or a task with an output at every step."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``input`` (batch, length, …), or as the layer has it, to ``output`` or ``logits``."""
        options = {} if reset is None else {"reset": reset}
        result: tuple[Tensor, State] = self.model(*given, state, **options)
        return result


class ClassificationStep(FlatModule):
    """One token of a sequence, to the logits of the sequence so far.

    The state is that of the backbone and, where the features are a mean, their sum and the number of steps.
    """

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``input``, int64 (batch,), to ``logits``, (batch, classes)."""
        (before, pooled), task = state, self.model
        if reset is not None:
            pooled = [x.masked_fill(reset.unsqueeze(-1), 0) for x in pooled]
        hidden, after = task.backbone.step(task.encoder(given[0]), before, reset)
        if pooled:
            total, steps = pooled
            pooled = [total + hidden, steps + 1]
            hidden = pooled[0] / pooled[1]
        return task.head(hidden), (after, pooled)


class ClassificationSequence(FlatModule):
    """Padded sequences or pairs of sequences, and their lengths, to logits."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``input`` int64 (batch, length) and ``lengths`` int64 (batch,) to ``logits``; pairs have a 2 after batch."""
        return self.model(*given), None


class PolicyStep(FlatModule):
    """One time step of an environment, to an action or the logits of the actions."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``observation``, ``previous_action`` and, as the task has them, ``return_to_go`` and ``timestep``."""
        values = dict(zip((each.name for each in self.inputs), given, strict=False))
        zeros = given[0].new_zeros(given[0].shape[0])
        result: tuple[Tensor, State] = self.model.step_outputs(
            given[0], given[1], values.get("return_to_go", zeros), values.get("timestep", zeros.long()), state, reset
        )
        return result


class PolicySequence(FlatModule):
    """Trajectories, to the actions of every step or their logits."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``observations``, ``actions`` and, as the task has them, ``returns_to_go`` and ``timesteps``."""
        values = dict(zip((each.name for each in self.inputs), given, strict=False))
        zeros = given[0].new_zeros(given[0].shape[:2])
        outputs = self.model(
            given[0], given[1], values.get("returns_to_go", zeros), values.get("timesteps", zeros.long()), reset
        )
        return outputs, None


class OnlinePolicyStep(FlatModule):
    """One time step of a policy that was trained online, to an action or the logits of the actions."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``observation`` and, where the task has it, ``previous_action``."""
        return _act(self.model, self.model.step, *given, state=state, reset=reset)


class OnlinePolicySequence(FlatModule):
    """Trajectories, to the actions of every step or their logits."""

    def run(self, *given: Tensor, state: State, reset: Tensor | None) -> tuple[Tensor, State]:
        """``observations`` and, where the task has them, ``previous_actions``."""
        return _act(self.model, self.model, *given, state=state, reset=reset)


def _act(
    task: Any, policy: Any, observation: Tensor, previous_action: Tensor | None = None, **options: Any
) -> tuple[Tensor, State]:
    """Actions go in and out in the units of the environment; those of the policy are between −1 and 1."""
    continuous = task.actions == "continuous"
    if continuous and previous_action is not None:
        previous_action = task.distribution.bounds.normalize(previous_action)
    outputs, _, state = policy(observation, options["state"], options["reset"], previous_action)
    return task.decide(outputs) if continuous else outputs, state
