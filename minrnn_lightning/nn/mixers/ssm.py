"""What the state-space mixers share: how their parameters are drawn and marked."""

import math

import torch
from torch import Tensor, nn


def log_step_sizes(size: int, shortest: float = 0.001, longest: float = 0.1) -> Tensor:
    """Logarithms of ``size`` step sizes Δ, drawn evenly from log ``shortest`` to log ``longest``.

    A channel with step size Δ starts out remembering for about 1/Δ steps.
    """
    return torch.empty(size).uniform_(math.log(shortest), math.log(longest))


def undecayed(values: Tensor) -> nn.Parameter:
    """A parameter that ``Task`` leaves out of the weight decay whatever its shape.

    Decay pulls weights towards 0, and 0 is no neutral value of a time constant or a frequency. The mark is the one that
    ``mamba_ssm`` puts on its parameters, so that optimizers written for those know it too.
    """
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
