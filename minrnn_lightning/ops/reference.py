"""Reference implementations for tests and benchmarks: the step loop, and the paper's log-space scan."""

import torch
from torch import Tensor
from torch.nn import functional as F

from minrnn_lightning.ops.eager import candidate


def linear_scan_loop(
    decay: Tensor, update: Tensor, initial: Tensor | None = None, *, reset: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """``linear_scan`` step by step, in the type of its inputs, with autograd's gradient."""
    h = torch.zeros_like(update[:, 0]) if initial is None else initial
    states: dict[int, Tensor] = {}
    steps = range(update.shape[1])
    for t in reversed(steps) if reverse else steps:
        if reset is not None:
            h = torch.where(reset[:, t, None], 0, h)
        h = decay[:, t] * h + update[:, t]
        states[t] = h
    return torch.stack([states[t] for t in steps], 1) if states else torch.zeros_like(update)


def gated_scan_loop(
    gate: Tensor,
    candidate_: Tensor,
    initial: Tensor | None = None,
    *,
    activation: str = "positive",
    reset: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """``gated_scan`` step by step, in the type of its inputs, with autograd's gradient."""
    decay, update = torch.sigmoid(-gate), torch.sigmoid(gate) * candidate(candidate_, activation)
    return linear_scan_loop(decay, update, initial, reset=reset, reverse=reverse)


def log_space_scan(gate: Tensor, candidate_: Tensor, initial: Tensor | None = None) -> Tensor:
    """The paper's parallel minGRU (appendix B.1, after Heinsen 2023, https://arxiv.org/abs/2311.06281).

    h = exp(A + logcumsumexp(log b − A)) with A = cumsum(log(1 − z)) and b = z · g(candidate). It equals ``gated_scan``
    with ``activation="positive"`` for an initial state above zero, with an error that grows with the length.

    Args:
        gate: Logits of the update gate, (batch, length, dim).
        candidate_: The candidate state before g, (batch, length, dim).
        initial: The state before the first step, above zero, (batch, dim); none if None.
    """
    log_decay, log_z = -F.softplus(gate), -F.softplus(-gate)
    log_g = torch.where(candidate_ >= 0, (F.relu(candidate_) + 0.5).log(), -F.softplus(-candidate_))
    log_update = log_z + log_g
    if initial is not None:
        log_update = torch.cat([initial.log().unsqueeze(1), log_update], 1)
        log_decay = F.pad(log_decay, (0, 0, 1, 0))
    total = log_decay.cumsum(1)
    h = torch.exp(total + torch.logcumsumexp(log_update - total, 1))
    return h[:, 1:] if initial is not None else h
