"""What data modules hand to tasks: batches with named fields, and the target that does not count.

They are named tuples, so that a task also takes the plain tuples of somebody else's DataLoader.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

IGNORED = -100  # a target that does not count; PyTorch's losses leave it out


class AnswerBatch(NamedTuple):
    """A batch of sequences with answers to give at some of their positions.

    Attributes:
        inputs: Tokens, int64 (batch, positions).
        targets: The answer where one is asked for, else -100; int64 (batch, positions).
        lengths: By which results are told apart, in the unit of the task; int64 (batch,).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor


class LabelledBatch(NamedTuple):
    """A batch of sequences, or of pairs of sequences, with a label each.

    Attributes:
        inputs: Tokens, filled with zeros at the end; int64 (batch, positions), of pairs (batch, 2, positions).
        targets: Labels, int64 (batch,).
        lengths: Tokens before the filling, int64 (batch,), of pairs (batch, 2).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor


class TrajectoryBatch(NamedTuple):
    """A batch of rows of steps; what is False in ``mask`` fills a row at its end and is zero everywhere.

    Attributes:
        observations: As they are in the data, not normalised; float32 (batch, length, observation_size).
        actions: float32 (batch, length, action_size), or int64 (batch, length) where actions are numbered.
        returns_to_go: Sum of the rewards from this step to the end of the episode, undiscounted, unscaled; float32
            (batch, length).
        timesteps: Number of the step within its episode, from 0; int64 (batch, length).
        mask: Whether this is a step of the data; bool (batch, length).
        reset: Whether the state starts anew: at the first step of a row and of an episode; bool (batch, length).
    """

    observations: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor
    reset: Tensor
