"""Bounds of the components of an action, and a warning about data outside them."""

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from minrnn_lightning.errors import InputError

TOLERANCE = 1e-3  # how far actions may lie outside their bounds, as a share of half the distance between them


class ActionBounds(nn.Module):
    """Scales actions from their bounds to −1 and 1 and back; the bounds are −1 and 1 until they are set.

    Args:
        size: Components of an action.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        # Not in the state_dict, because older checkpoints have none: a task keeps the bounds elsewhere.
        self.register_buffer("middle", torch.zeros(size), persistent=False)
        self.register_buffer("scale", torch.ones(size), persistent=False)
        self.restart_check()

    def set(self, low: Sequence[float] | Tensor, high: Sequence[float] | Tensor) -> None:
        """Set the lower and upper bounds, (size,) each.

        Raises:
            InputError: The bounds are of another size, not finite or not in order.
        """
        ends = [exact(end) for end in (low, high)]
        middle, scale = ends[0] / 2 + ends[1] / 2, ends[1] / 2 - ends[0] / 2
        if any(end.shape != self.middle.shape for end in ends) or not (scale > 0).all() & scale.isfinite().all():
            raise InputError(
                f"low and high must be {len(self.middle)} finite numbers each, low below high, "
                f"got {ends[0].tolist()} and {ends[1].tolist()}"
            )
        self.middle.copy_(middle)
        self.scale.copy_(scale)

    def reset(self) -> None:
        """Set the bounds to −1 and 1."""
        self.middle.zero_()
        self.scale.fill_(1)

    def normalize(self, actions: Tensor) -> Tensor:
        """Scale actions (..., size) from their bounds to −1 and 1."""
        return (actions - self.middle) / self.scale

    def denormalize(self, actions: Tensor) -> Tensor:
        """Scale actions (..., size) from −1 and 1 to their bounds."""
        return actions * self.scale + self.middle

    def restart_check(self) -> None:
        """Forget the actions checked so far, and whether a warning was given."""
        self._reach: Tensor | None = None  # largest distance of an action from the middle, in normalised units
        self._warned = False

    def check(self, actions: Tensor, mask: Tensor) -> None:
        """Record how far actions (batch, steps, size) are from the middle where mask (batch, steps) is True.

        The result stays on the device: reading it would synchronise, which ``warn`` does.
        """
        reach = self.normalize(actions.detach()).abs().amax(-1).masked_fill(~mask, 0).max()
        self._reach = reach if self._reach is None else torch.maximum(self._reach, reach)

    def warn(self) -> None:
        """Warn if actions checked since the last call are outside the bounds, once until ``restart_check``."""
        reach, self._reach = self._reach, None
        if self._warned or reach is None or reach <= 1 + TOLERANCE:
            return
        self._warned = True
        low, high = self.middle - self.scale, self.middle + self.scale
        rank_zero_warn(
            f"The data have actions outside the bounds of this policy, {low.min():.4g} to {high.max():.4g}, up to "
            f"{reach.item():.3g} times as far from their middle: set the bounds with a data module that has action_low "
            "and action_high, like TrajectoryDataModule, or with task.bound_actions(low, high) before training."
        )


def exact(numbers: Sequence[float] | Tensor) -> Tensor:
    """Numbers as the checkpoint contains them: float64, on the CPU."""
    return torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
