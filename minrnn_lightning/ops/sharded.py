"""The scan over a sequence whose parts are on several processes, and the steps before each part.

The processes of a group hold contiguous parts of one sequence, in the order of their ranks. Each scans its part, which
gives the product P of its decays and its last state E; an all-gather of these pairs gives every process the state
before its part, h = E_q + P_q · h over the parts q before it, from which it scans once more. Backward is the same in
the opposite direction, with the gradient of the state before a part in place of E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from minrnn_lightning.errors import InputError
from minrnn_lightning.ops import eager
from minrnn_lightning.ops.operators import scan, scan_and_state, scan_backward
from minrnn_lightning.ops.scan import Activation, check_gates, check_sequences

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass
class Traffic:
    """Collective operations of this process, and the bytes that it has contributed to them."""

    messages: int = 0
    bytes: int = 0

    def count(self, x: Tensor) -> None:
        """Add a message."""
        self.messages += 1
        self.bytes += x.numel() * x.element_size()


traffic = Traffic()


def sharded_scan(
    decay: Tensor,
    update: Tensor,
    initial: Tensor | None = None,
    *,
    group: ProcessGroup,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run ``linear_scan`` over a sequence whose parts are on the processes of a group, in the order of their ranks.

    Every process calls it with its own part. Parts may differ in length and have no step at all. There are first
    derivatives in reverse mode; every process has to run the backward pass too. 16-bit gradients are summed in float32.

    Args:
        decay: What remains of the state at each step of this part, (batch, length, dim).
        update: What is added at each step, (batch, length, dim).
        initial: The state before the first step of the complete sequence, (batch, dim); zeros if None. That of the
            process with the first part (the last one if ``reverse``) is used, which also gets the gradient.
        group: The processes, of which this is one.
        reset: Bool (batch, length), True where the state before that step is replaced by zeros.
        reverse: Run from the last step to the first.

    Returns:
        The states of this part, (batch, length, dim), in the promoted type of ``decay`` and ``update``, and the state
        after the last step of the complete sequence, (batch, dim), on every process, in the type of the state and
        without a gradient.

    Raises:
        InputError: This process is not in the group.
        ValueError: A shape does not fit.
        TypeError: An argument is not a dense tensor, or not of a floating-point type (bool for ``reset``).
    """
    sequences = check_sequences({"decay": decay, "update": update}, initial, reset)
    return _sharded(*sequences, reset, "linear", reverse, group)


def sharded_gated_scan(
    gate: Tensor,
    candidate: Tensor,
    initial: Tensor | None = None,
    *,
    group: ProcessGroup,
    forget: Tensor | None = None,
    activation: Activation = "positive",
    reset: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run ``gated_scan`` over a sequence whose parts are on the processes of a group, as ``sharded_scan``.

    Args:
        gate: Logits of the update gate (minLSTM's input gate), (batch, length, dim).
        candidate: The candidate state before its activation, (batch, length, dim).
        initial: As for ``sharded_scan``.
        group: As for ``sharded_scan``.
        forget: Logits of minLSTM's forget gate, (batch, length, dim); minGRU if None.
        activation: As for ``gated_scan``.
        reset: As for ``sharded_scan``.
        reverse: As for ``sharded_scan``.

    Returns:
        As for ``sharded_scan``.

    Raises:
        InputError: This process is not in the group, or the activation is unknown.
        ValueError: A shape does not fit.
        TypeError: An argument is not a dense tensor, or not of a floating-point type (bool for ``reset``).
    """
    sequences = check_gates(gate, candidate, forget, initial, activation, reset)
    return _sharded(*sequences, reset, activation, reverse, group)


def steps_before(x: Tensor, before: Tensor, reset: Tensor | None, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """The last steps before each part of a sequence, for a convolution.

    Args:
        x: This process's part of the sequence, (batch, length, dim).
        before: The steps before the complete sequence, (batch, past, dim), in the type of the state.
        reset: Bool (batch, length), True where a new sequence starts, to which the steps before it are zeros.
        group: The processes, of which this is one.

    Returns:
        The ``past`` steps before this part, and those at the end of the complete sequence, without a gradient.

    Raises:
        InputError: This process is not in the group.
    """
    rank, _ = position(group)
    past = before.shape[1]
    kept = min(x.shape[1], past)
    steps = x[:, x.shape[1] - kept :].to(before.dtype)
    known = torch.ones(x.shape[0], past, dtype=torch.bool, device=x.device)  # by this part alone
    known[:, : past - kept] = False
    if reset is not None:
        # A step is visible after the part unless a later step of the part, or the next sequence's first, resets.
        later = reset.flip(1).cumsum(1).flip(1) - reset.long()  # resets after each step
        steps = steps * (later[:, x.shape[1] - kept :] == 0).unsqueeze(-1)
        known |= reset.any(1, keepdim=True)
    steps = torch.cat([before.new_zeros(x.shape[0], past - kept, x.shape[2]), steps], 1)
    after = own = before
    for part, (given, from_part) in enumerate(zip(*_gather_steps(steps, known, group), strict=True)):
        # The other places hold what was there, moved on by the number of steps of the part.
        moved = (torch.arange(past, device=x.device) + from_part.sum(1, keepdim=True)).clamp(max=max(0, past - 1))
        carried = after.gather(1, moved.unsqueeze(-1).expand_as(after))
        after = torch.where(from_part.unsqueeze(-1), given, carried)
        # A process whose part is the first waits for the gradients of the others as well.
        own = after if part < rank else torch.where(torch.zeros_like(from_part).unsqueeze(-1), after, own)
    return own, after.detach()


def position(group: ProcessGroup) -> tuple[int, int]:
    """The rank of this process in a group, and the number of its processes.

    Raises:
        InputError: This process is not in the group.
    """
    rank = distributed.get_rank(group)
    if rank < 0:
        raise InputError(
            f"group must contain this process, whose global rank is {distributed.get_rank()}; make one with "
            "torch.distributed.new_group for every process that calls"
        )
    return rank, distributed.get_world_size(group)


def gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """The tensors of all processes, (processes, ...), without a gradient."""
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(parts, x, group=group)
    traffic.count(x)
    return torch.stack(parts)


def total(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the tensors of all processes, without a gradient."""
    x = x.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x, group=group)
    traffic.count(x)
    return x


def _sharded(
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
    group: ProcessGroup,
) -> tuple[Tensor, Tensor]:
    position(group)
    result: tuple[Tensor, Tensor] = _ShardedScan.apply(k, v, f, initial, reset, kind, reverse, group)  # type: ignore[no-untyped-call]
    return result


def _parts(x: Tensor, group: ProcessGroup, reverse: bool) -> Tensor:
    """``gather`` in the order of the scan."""
    parts = gather(x, group)
    return parts.flip(0) if reverse else parts


class _ShardedScan(torch.autograd.Function):
    """The states of this process's part, and the state after the last part."""

    @staticmethod
    def forward(
        ctx: Any,
        k: Tensor,
        v: Tensor,
        f: Tensor | None,
        initial: Tensor | None,
        reset: Tensor | None,
        kind: str,
        reverse: bool,
        group: ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        rank, size = position(group)
        part = size - 1 - rank if reverse else rank  # in the order of the scan
        start = initial if part == 0 else None
        h, end = scan_and_state(k, v, f, start, reset, kind, reverse)
        product = eager.transition(k, v, f, reset, kind)[0].prod(1)
        products, ends = _parts(torch.stack([product, end]), group, reverse).unbind(1)
        state = ends[0]
        for number in range(1, size):
            if number == part:
                start = state
                h = scan(k, v, f, start, reset, kind, reverse)
            state = ends[number] + products[number] * state
        ctx.save_for_backward(k, v, f, h, start, reset, products)
        ctx.kind, ctx.reverse, ctx.group, ctx.part, ctx.initial = kind, reverse, group, part, initial is not None
        ctx.mark_non_differentiable(state)
        return h, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        k, v, f, h, start, reset, products = ctx.saved_tensors
        wide, part, size = products.dtype, ctx.part, len(products)
        sequences = [None if x is None else x.to(wide) for x in (grad, k, v, f, h)]
        given = (*sequences[1:], start, reset, ctx.kind, ctx.reverse)
        *gradients, d_start = scan_backward(sequences[0], *given)
        d_starts = _parts(d_start, ctx.group, ctx.reverse)  # from the outputs of each part alone
        later = torch.zeros_like(d_start)  # the gradient of the state after this part, from the parts after it
        for number in range(size - 1, part, -1):
            later = d_starts[number] + products[number] * later
        if part < size - 1 and k.shape[1]:
            summed = grad.to(wide, copy=True)
            summed[:, 0 if ctx.reverse else -1] += later
            *gradients, d_start = scan_backward(summed, *given)
        d_k, d_v, d_f = (x.to(k.dtype) for x in gradients)
        if part > 0:
            d_start = torch.zeros_like(d_start)  # of ``initial``, which the first part has used
        elif not k.shape[1]:
            d_start = later
        return d_k, d_v, None if f is None else d_f, d_start if ctx.initial else None, None, None, None, None


class _GatherSteps(torch.autograd.Function):
    """The tensors of all processes, (processes, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return gather(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return total(grad, ctx.group)[position(ctx.group)[0]], None


def _gather_steps(steps: Tensor, known: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """The steps of all processes, and which of them are known, in one message."""
    message = torch.cat([steps, known.unsqueeze(-1).to(steps.dtype)], -1)
    gathered: Tensor = _GatherSteps.apply(message, group)  # type: ignore[no-untyped-call]
    return gathered[..., :-1], gathered[..., -1] > 0
