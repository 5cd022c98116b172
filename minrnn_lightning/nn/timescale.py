"""Time constants with which the gates start."""

import math

import torch
from torch import Tensor

from minrnn_lightning.errors import InputError


def log_timescales(size: int, longest: float) -> Tensor:
    """Logarithms of ``size`` time constants spread evenly from 1 step to ``longest``.

    A unit whose forget gate starts at bias log τ remembers for about τ steps: chrono initialisation (Tallec & Ollivier
    2018, https://arxiv.org/abs/1804.11188), with the time constants spread over the octaves.

    Raises:
        InputError: ``longest`` is below 1 or not finite.
    """
    if not 1 <= longest < math.inf:
        raise InputError(f"timescale must be at least 1 step and finite, got {longest}")
    return torch.linspace(0, math.log(longest), size)
