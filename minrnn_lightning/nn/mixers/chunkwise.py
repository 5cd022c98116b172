"""Recurrences with a matrix for a state, chunk by chunk: linear attention with a decay, and the delta rule.

Within a chunk all steps are computed at once by matrix products; the state goes from chunk to chunk by a scan. Sources:
section 6 of Mamba-2 (Dao & Gu 2024, https://arxiv.org/abs/2405.21060) and section 4 of GLA (Yang et al. 2023,
https://arxiv.org/abs/2312.06635) for the first; for the delta rule Yang et al. 2024, https://arxiv.org/abs/2406.06484,
with a decay https://arxiv.org/abs/2412.06464.

A state S is (batch, heads, key, value). Decays are given as their logarithms, at most 0, and multiplied as sums of
these, which are at most 0 too: no product overflows.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minrnn_lightning.nn.mixers.base import is_exporting
from minrnn_lightning.ops import linear_scan

CHUNK = 64  # updates of the state that are computed at once
MOST_CHUNKS = 2**16  # of a sequence in an exported program of the delta rule


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run S_t = a_t S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t over the length.

    Args:
        q: Queries, (batch, heads, length, key).
        k: Keys, like ``q``.
        v: Values, (batch, heads, length, value).
        log_decay: log a_t ≤ 0, (batch, heads, length).
        initial: The state before the first step, (batch, heads, key, value); zeros if None.
        reset: Bool (batch, length), True where the state before that step is replaced by zeros.
        chunk: Steps of a chunk.

    Returns:
        y, (batch, heads, length, value), and the state after the last step.
    """
    length = q.shape[2]
    chunk = chunk if is_exporting() else min(chunk, length)
    q, k, v, log_decay = (_chunks(x, chunk) for x in (q, k, v, log_decay))
    decay, from_start = _decays(log_decay, _reset_chunks(reset, chunk))
    to_end = decay[..., -1, :, None]
    updates = (to_end * k).mT @ v
    before, state = _states(from_start[..., -1], updates, initial)
    y = from_start.unsqueeze(-1) * (q @ before) + (decay * (q @ k.mT)) @ v
    return _length(y, length), state


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    start: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule over the length, with one or several updates a step.

    At a step S is multiplied by a_t, and then for each update S ← S + β k (v − Sᵀk)ᵀ = (I − β k kᵀ) S + β k vᵀ. The
    output is y_t = Sᵀ q_t after the last of them. Several updates a step are DeltaProduct (Siems et al. 2025,
    https://arxiv.org/abs/2502.10297).

    The updates of a chunk are (I + A) U = β (V − Γ K S₀) with A_ij = β_i Γ_ij k_i·k_j for j < i, where Γ are products
    of decays and S₀ is the state before the chunk: U is found by one triangular solve (the WY form).

    Args:
        q: Queries, (batch, heads, length, key).
        k: Keys of norm 1, (batch, heads, length, updates, key).
        v: Values, (batch, heads, length, updates, value).
        beta: β, from 0 to 2, (batch, heads, length, updates).
        log_decay: log a_t ≤ 0, (batch, heads, length), or broadcast to it.
        initial: The state before the first step, (batch, heads, key, value); zeros if None.
        reset: Bool (batch, length), True where the state before that step is replaced by ``start``.
        start: (heads, key, value); zeros if None.
        chunk: Updates of a chunk.

    Returns:
        y, (batch, heads, length, value), and the state after the last step.
    """
    length, updates = k.shape[2:4]
    chunk = max(1, chunk // updates)  # steps
    chunk = chunk if is_exporting() else min(chunk, length)
    q, k, v, beta, log_decay = (_chunks(x, chunk) for x in (q, k, v, beta, log_decay))
    k, v, beta = k.flatten(3, 4), v.flatten(3, 4), beta.flatten(3, 4).unsqueeze(-1)
    # The decay and the reset of a step are before its first update.
    log_decay = F.pad(log_decay.unsqueeze(-1), (0, updates - 1)).flatten(-2)
    resets = _reset_chunks(reset, chunk)
    if resets is not None:
        resets = F.pad(resets.unsqueeze(-1), (0, updates - 1)).flatten(-2)
    decay, from_start = _decays(log_decay, resets)
    from_start = from_start.unsqueeze(-1)
    keys_at_end = (decay[..., -1, :, None] * k).mT

    if resets is None or start is None:
        start = restart = None
    else:
        start = start.unsqueeze(1)  # of all chunks
        restart = decay @ (resets * log_decay.exp()).unsqueeze(-1)  # product of decays since the last reset, or 0
        v = v - restart * (k @ start)
    right = torch.cat([beta * v, beta * from_start * k], -1)
    solved = torch.linalg.solve_triangular(beta * decay * (k @ k.mT), right, upper=False, unitriangular=True)
    u_free, w = solved.split([v.shape[-1], k.shape[-1]], -1)  # U = u_free − w S₀
    identity = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    transition = from_start[..., -1:, :] * identity - keys_at_end @ w
    update = keys_at_end @ u_free
    if start is not None and restart is not None:
        update = update + restart[..., -1:, :] * start
    before, state = _matrix_states(transition, update, initial)

    last = slice(updates - 1, None, updates)  # the last update of each step
    read = decay[..., last, :] * (q @ k.mT)
    y = from_start[..., last, :] * (q @ before) + read @ (u_free - w @ before)
    if start is not None and restart is not None:
        y = y + restart[..., last, :] * (q @ start)
    return _length(y, length), state


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """(batch, heads, length, …) to (batch, heads, chunks, chunk, …), the last one padded with zeros."""
    length = x.shape[2]
    chunks = (length + chunk - 1) // chunk
    if is_exporting():  # without views, and without sizes of 1, which would fix the length of the program
        steps = chunk * torch.arange(chunks + 2, device=x.device).unsqueeze(1) + torch.arange(chunk, device=x.device)
        return F.pad(x, (0, 0) * (x.dim() - 3) + (0, 1))[:, :, steps.clamp(max=length)]
    x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, chunks * chunk - length))
    return torch.unflatten(x, 2, (chunks, chunk))


def _length(y: Tensor, length: int) -> Tensor:
    """(batch, heads, chunks, chunk, value) to (batch, heads, length, value)."""
    y = y.flatten(2, 3)
    if is_exporting():  # torch.export cannot prove that a slice fits
        return y.index_select(2, torch.arange(length, device=y.device))
    return y[:, :, :length]


def _reset_chunks(reset: Tensor | None, chunk: int) -> Tensor | None:
    """(batch, length) to (batch, 1, chunks, chunk)."""
    return None if reset is None else _chunks(reset.unsqueeze(1), chunk)


def _decays(log_decay: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Products of the decays a of each chunk; 0 where a reset is between.

    Args:
        log_decay: (batch, heads, chunks, chunk).
        reset: Bool (batch, 1, chunks, chunk).

    Returns:
        a_{j+1} ⋯ a_i at [i, j] for j ≤ i, else 0, (batch, heads, chunks, chunk, chunk), and a_1 ⋯ a_i, (batch, heads,
        chunks, chunk).
    """
    steps = torch.arange(log_decay.shape[-1], device=log_decay.device)
    after, connected = steps[:, None] > steps, steps[:, None] >= steps
    from_start = log_decay.cumsum(-1).exp()
    if reset is not None:
        sequence = reset.cumsum(-1)
        connected = connected & (sequence.unsqueeze(-1) == sequence.unsqueeze(-2))
        from_start = from_start * (sequence == 0)
    # Each column is a sum of its own: differences of sums would lose digits, and carry gradients over resets.
    sums = (log_decay.unsqueeze(-1) * after).cumsum(-2)
    return sums.exp() * connected, from_start


def _states(decay: Tensor, update: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run S_n = a_n S_{n−1} + B_n over the chunks.

    Args:
        decay: a, (batch, heads, chunks).
        update: B, (batch, heads, chunks, key, value).
        initial: The state before the first chunk, (batch, heads, key, value).

    Returns:
        The state before each chunk, like ``update``, and the last one.
    """
    decay = decay[..., None, None].expand_as(update)
    start = torch.zeros_like(update[:, :, 0]) if initial is None else initial
    after = linear_scan(decay.transpose(1, 2).flatten(2), update.transpose(1, 2).flatten(2), start.flatten(1))
    after = torch.unflatten(after, 2, (update.shape[1], *update.shape[3:])).transpose(1, 2)
    return torch.cat([start.unsqueeze(2), after[:, :, :-1]], 2), after[:, :, -1].clone()


def _matrix_states(transition: Tensor, update: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """Run S_n = M_n S_{n−1} + B_n over the chunks, by log₂(chunks) rounds (Hillis & Steele 1986).

    After a round, M_n and B_n belong to twice as many chunks up to n. No product of M grows: all have norms up to 1.

    Args:
        transition: M, (batch, heads, chunks, key, key).
        update: B, (batch, heads, chunks, key, value).
        initial: The state before the first chunk, (batch, heads, key, value).

    Returns:
        The state before each chunk, like ``update``, and the last one.
    """
    chunks = update.shape[2]
    start = torch.zeros_like(update[:, :, 0]) if initial is None else initial
    position = torch.arange(chunks, device=update.device)
    before = torch.cat([start.unsqueeze(2), update[:, :, :-1]], 2)  # of the chunk before, or of the start
    product = torch.where((position == 0)[:, None, None], 0, transition.roll(1, 2))
    offset = 1
    while offset < (MOST_CHUNKS if is_exporting() else chunks):
        earlier, exists = (position - offset).clamp(min=0), (position >= offset)[:, None, None]
        before = before + product @ (before.index_select(2, earlier) * exists)
        product = product @ (product.index_select(2, earlier) * exists)
        offset *= 2
    return before, transition[:, :, -1] @ before[:, :, -1] + update[:, :, -1]
