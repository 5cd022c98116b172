"""What the state-space mixers share: how their parameters are drawn."""

import math

import torch
from torch import Tensor


def log_step_sizes(size: int, shortest: float = 0.001, longest: float = 0.1) -> Tensor:
    """Logarithms of ``size`` step sizes Δ, drawn evenly from log ``shortest`` to log ``longest``.

    A channel with step size Δ starts out remembering for about 1/Δ steps.
    """
    return torch.empty(size).uniform_(math.log(shortest), math.log(longest))
