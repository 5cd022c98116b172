"""The learning rate schedule, and optimizers whose settings are not replaced by those of a checkpoint."""

import math
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from minrnn_lightning.errors import InputError

Shape = Literal["cosine", "linear"]


def keep_settings(optimizer: Optimizer) -> None:
    """Let an optimizer keep its own decay, momentum and the like when a checkpoint's state is loaded into it.

    PyTorch would take them from the checkpoint; the arguments of a task should hold in a resumed run too. The learning
    rate is left to the schedule, which is loaded afterwards. The groups must have a fixed order.
    """

    def with_own_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        if len(state["param_groups"]) != len(optimizer.param_groups):
            return state  # which PyTorch refuses
        groups = [
            {**saved, **{name: value for name, value in own.items() if name not in ("params", "lr", "initial_lr")}}
            for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
        ]
        return {**state, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(with_own_settings)


class WarmupDecay(LambdaLR):
    """A learning rate that rises linearly from 0, then falls to 0, along a cosine or linearly.

    Only the number of steps is loaded from a checkpoint: base, warm-up and end stay those of the arguments.

    Args:
        optimizer: Its learning rate is the highest one, reached after the warm-up.
        warmup: Steps over which it rises.
        total: Step at which it reaches 0; infinite for a constant rate after the warm-up.
        shape: How it falls, cosine or linear.
    """

    def __init__(self, optimizer: Optimizer, warmup: int, total: float, shape: Shape = "cosine") -> None:
        super().__init__(optimizer, lambda step: warmup_decay(step, warmup, total, shape))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the step of a checkpoint.

        Raises:
            InputError: There is no such step in the checkpoint.
        """
        step = state_dict.get("last_epoch")
        if not isinstance(step, int) or step < 0:
            raise InputError(
                f"last_epoch of its learning rate schedule must be a whole number of at least 0, got {step!r}; start "
                "from its weights with --model.init_from"
            )
        super().load_state_dict({**self.state_dict(), "last_epoch": step, "_step_count": step + 1})
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def warmup_decay(step: int, warmup: int, total: float, shape: Shape = "cosine") -> float:
    """Factor of the learning rate: up to 1 in ``warmup`` steps, down to 0 at ``total`` along a cosine or linearly."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if math.isinf(total):
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
