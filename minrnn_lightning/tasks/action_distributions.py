"""Distributions of actions over the outputs of a policy: categorical, and a diagonal Gaussian."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minrnn_lightning.errors import InputError
from minrnn_lightning.tasks.action_bounds import ActionBounds

LOG_STD = -0.5  # at the start, in units of half the distance between the bounds


class CategoricalActions(nn.Module):
    """One choice, or several independent ones, of logits (..., Σ sizes).

    Actions are int64 (...) for one choice and (..., choices) for several, each counted from 0.

    Args:
        sizes: Number of possible actions of each choice.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Gumbel noise for actions of outputs of a shape, on the CPU, in float32."""
        uniform = torch.rand(*shape, generator=generator).clamp(torch.finfo(torch.float32).tiny, 1 - 2**-24)
        return -(-uniform.log()).log()

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Random actions: the largest logit with noise (Gumbel 1954) has the probabilities of the softmax."""
        return self.mode(logits.float() + noise)

    def mode(self, logits: Tensor) -> Tensor:
        """The most likely actions."""
        choices = torch.stack([part.argmax(-1) for part in self._parts(logits)], -1)
        return choices.squeeze(-1) if len(self.sizes) == 1 else choices

    def log_prob(self, logits: Tensor, actions: Tensor) -> Tensor:
        """Logarithm of the probability of actions, (...)."""
        chosen = actions.unsqueeze(-1) if len(self.sizes) == 1 else actions
        parts = zip(self._parts(logits.float()), chosen.unbind(-1), strict=True)
        return torch.stack([part.log_softmax(-1).gather(-1, i.unsqueeze(-1)).squeeze(-1) for part, i in parts]).sum(0)

    def entropy(self, logits: Tensor) -> Tensor:
        """Entropy in nats, (...)."""
        log_probs = [part.log_softmax(-1) for part in self._parts(logits.float())]
        return -torch.stack([(each.exp() * each).sum(-1) for each in log_probs]).sum(0)

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions as an environment takes them: unchanged."""
        return actions

    def _parts(self, logits: Tensor) -> Sequence[Tensor]:
        """The logits of each choice."""
        return torch.split(logits, self.sizes, -1)


class GaussianActions(nn.Module):
    """Vectors around a mean (..., size), with a deviation for each component that does not depend on the observation.

    Mean, deviation and actions are in units in which the bounds of the environment are −1 and 1; the environment clips
    actions outside of them, whose probability is that of the Gaussian nevertheless.

    Args:
        size: Components of an action.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((size,), LOG_STD))
        self.bounds = ActionBounds(size)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Standard normal noise, on the CPU, in float32."""
        return torch.randn(*shape, generator=generator)

    def sample(self, mean: Tensor, noise: Tensor) -> Tensor:
        """Random actions."""
        return mean.float() + self.log_std.float().exp() * noise

    def mode(self, mean: Tensor) -> Tensor:
        """The most likely actions: the mean."""
        return mean

    def log_prob(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Logarithm of the density of actions, (...)."""
        log_std = self.log_std.float()
        distance = (actions - mean.float()) / log_std.exp()
        return -(distance.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self, mean: Tensor) -> Tensor:
        """Differential entropy in nats, (...)."""
        return (self.log_std.float() + (1 + math.log(2 * math.pi)) / 2).sum().expand(mean.shape[:-1])

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions in the units of the environment."""
        return self.bounds.denormalize(actions)


def choices_of(actions: Any, output_size: int) -> list[int]:
    """The numbers of possible actions of every choice; none for continuous actions.

    Raises:
        InputError: The type of actions is unknown, or their numbers do not have the sum ``output_size``.
    """
    if actions == "continuous":
        return []
    sizes = [output_size] if actions == "discrete" else actions
    if not isinstance(sizes, list) or not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InputError(
            f"actions must be discrete, continuous, or a list of the numbers of actions to choose from, got {actions!r}"
        )
    if sum(sizes) != output_size:
        raise InputError(f"actions must have the sum output_size, {output_size}, got {actions}")
    return sizes
