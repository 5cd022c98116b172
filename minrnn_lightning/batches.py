"""The interface between data modules and tasks: batches with named fields, the ignored target, facts about the data.

The batches are named tuples, so that a task also accepts the plain tuples of any DataLoader.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

from torch import Tensor

IGNORED = -100  # the target that losses and metrics ignore, as PyTorch's losses do


class TextBatch(NamedTuple):
    """A batch of windows of text.

    Attributes:
        inputs: Tokens, int64 (batch, length).
        targets: The next token at every position, else -100; int64 (batch, length).
    """

    inputs: Tensor
    targets: Tensor


class StreamBatch(NamedTuple):
    """A batch of text whose rows may continue those of the batch before.

    Attributes:
        inputs: Tokens, int64 (batch, length).
        targets: The next token at every position, else -100; int64 (batch, length).
        continues: Whether the state goes on from the batch before; it is the initial one otherwise.
        reset: Whether a document starts with the step, whose outputs then depend on nothing before; bool (batch,
            length), or None for never.
        delta_t: The time since the step before, for samples at irregular times; float32 (batch, length), or None.
    """

    inputs: Tensor
    targets: Tensor
    continues: bool = False
    reset: Tensor | None = None
    delta_t: Tensor | None = None


class AnswerBatch(NamedTuple):
    """A batch of sequences with answers to predict at some of their positions.

    Attributes:
        inputs: Tokens, int64 (batch, length).
        targets: The answer at positions that have one, else -100; int64 (batch, length).
        lengths: Lengths by which results are reported, in the unit of the data; int64 (batch,).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor


class AnswerStreamBatch(NamedTuple):
    """A batch of sequences with answers at some of their positions, whose rows may continue those of the batch before.

    Attributes:
        inputs: Tokens, int64 (batch, length).
        targets: The answer at positions that have one, else -100; int64 (batch, length).
        lengths: Lengths by which results are reported, in the unit of the data; int64 (batch,).
        continues: As in ``StreamBatch``.
        reset: As in ``StreamBatch``.
        delta_t: As in ``StreamBatch``.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    continues: bool = False
    reset: Tensor | None = None
    delta_t: Tensor | None = None


class LabelledBatch(NamedTuple):
    """A batch of sequences, or of pairs of sequences, with a label each.

    Attributes:
        inputs: Tokens, padded with zeros at the end; int64 (batch, length), of pairs (batch, 2, length).
        targets: Labels, int64 (batch,).
        lengths: Tokens without the padding, int64 (batch,), of pairs (batch, 2).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor


class TimedLabelledBatch(NamedTuple):
    """A batch of sequences of samples at irregular times, or of pairs of them, with a label each.

    Attributes:
        inputs: As in ``LabelledBatch``.
        targets: As in ``LabelledBatch``.
        lengths: As in ``LabelledBatch``.
        delta_t: The time since the step before, float32 (batch, length), of pairs (batch, 2, length).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor
    delta_t: Tensor


class TrajectoryBatch(NamedTuple):
    """A batch of rows of time steps; those where ``mask`` is False are padding at the end of a row, zero everywhere.

    Attributes:
        observations: In the units of the data, not normalised; float32 (batch, length, observation_size).
        actions: float32 (batch, length, action_size), or int64 (batch, length) where actions are discrete.
        returns_to_go: Sum of the rewards from this step to the end of the episode, undiscounted, unscaled; float32
            (batch, length).
        timesteps: Index of the step within its episode, from 0; int64 (batch, length).
        mask: Whether this is a step of the data rather than padding; bool (batch, length).
        reset: Whether the state is reset: at the first step of a row and of an episode; bool (batch, length).
    """

    observations: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor
    reset: Tensor


class TrajectoryStreamBatch(NamedTuple):
    """A batch of rows of time steps that may continue those of the batch before.

    Attributes:
        observations: As in ``TrajectoryBatch``.
        actions: As in ``TrajectoryBatch``.
        returns_to_go: As in ``TrajectoryBatch``.
        timesteps: As in ``TrajectoryBatch``.
        mask: As in ``TrajectoryBatch``.
        reset: Whether an episode starts with the step; bool (batch, length).
        continues: As in ``StreamBatch``.
        delta_t: As in ``StreamBatch``.
    """

    observations: Tensor
    actions: Tensor
    returns_to_go: Tensor
    timesteps: Tensor
    mask: Tensor
    reset: Tensor
    continues: bool = False
    delta_t: Tensor | None = None


class RolloutBatch(NamedTuple):
    """A batch of rows of time steps that a policy has taken in environments, with episodes that start within rows.

    Attributes:
        observations: Not normalised, float32 (batch, length, observation_size).
        actions: int64 (batch, length) for one choice, (batch, length, choices) for several; float32 (batch, length,
            action_size), in units in which the bounds are −1 and 1, if they are continuous.
        previous_actions: Those of the step before; arbitrary where ``reset`` is True.
        log_probs: Logarithm of the probability with which each action was taken; float32 (batch, length).
        values: Estimates of the return; float32 (batch, length).
        advantages: How much better than these the actions were; float32 (batch, length).
        reset: Whether an episode starts with the step; bool (batch, length).
        state: Of the policy before the first step, whatever ``reset`` says of it.
    """

    observations: Tensor
    actions: Tensor
    previous_actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    reset: Tensor
    state: Any


class EpisodeBatch(NamedTuple):
    """Complete episodes of a policy in an environment.

    Attributes:
        returns: Undiscounted return of each; float32 (episodes,).
        lengths: Number of steps of each; float32 (episodes,).
    """

    returns: Tensor
    lengths: Tensor


class DataFacts(Protocol):
    """Facts about the data that tasks and callbacks read from a data module; None where unknown.

    Attributes:
        batch_type: Class of a training batch.
        length: Steps in a training window or row.
        chance: Accuracy of a random guess, between 0 and 1.
        baseline: Accuracy of a trivial rule that the data module names, between 0 and 1.
        token_sizes: For every token the characters that begin in it and its bytes in UTF-8; int64 (tokens,) each.
        token_words: For every token the words that begin in it, where perplexity is by word; int64 (tokens,).
        tokenizer: The vocabulary of text.
        discrete: Whether actions are discrete.
        actions: The type of actions in an environment, as the argument of ``PPOTask``.
        observation_mean: Mean of the observations of the training data, (observation_size,).
        observation_std: Their standard deviation, (observation_size,).
        action_low: Lower bounds of the actions, (action_size,).
        action_high: Upper bounds of the actions, (action_size,).
        env_id: Environment that the data are from.
        env_args: Arguments of the environment.
        max_return: Highest return of an episode in the data.
        statistics: Figures of the rollouts so far to log, by name.
        collect_seconds_per_batch: Seconds that the last rollout took, for each training batch of it.
    """

    batch_type: type[Any] | None
    length: int | None
    chance: float | None
    baseline: float | None
    token_sizes: tuple[Tensor, Tensor] | None
    token_words: Tensor | None
    tokenizer: Any
    discrete: bool | None
    actions: str | list[int] | None
    observation_mean: Any
    observation_std: Any
    action_low: Any
    action_high: Any
    env_id: str | None
    env_args: dict[str, Any] | None
    max_return: float | None
    statistics: dict[str, float] | None
    collect_seconds_per_batch: float | None


class _Facts:
    def __init__(self, data: object) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name, None)


def data_facts(trainer: Any) -> DataFacts:
    """Facts of the data module of a Trainer; all None without a Trainer or with plain data loaders."""
    return cast("DataFacts", _Facts(getattr(trainer, "datamodule", None)))
