"""A sequence in chunks of steps, whose gradients are written into one array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minrnn_lightning.nn.fused import is_transformed


def split_steps(x: Tensor, chunk: int) -> Iterator[Tensor]:
    """As ``torch.split(x, chunk, 1)``, with a backward pass that takes half of the memory.

    The gradient of ``torch.split`` is concatenated from those of all chunks, which exist beside it. Here each of them
    is written into the gradient of the complete sequence as soon as it is known, from the last chunk to the first. For
    that, a chunk has to be used before the next one is taken: autograd runs backward what was computed last.

    Args:
        x: (batch, length, ...).
        chunk: Steps of a chunk; the last may have fewer.
    """
    if torch.compiler.is_compiling() or is_transformed():  # which arrange the memory themselves
        yield from torch.split(x, chunk, 1)
        return
    complete, start, rest = _Gradient(), 0, x
    while rest.shape[1] > chunk:
        part, rest = _Cut.apply(rest, chunk, start, complete)  # type: ignore[no-untyped-call]
        yield part
        start += chunk
    yield rest


class _Gradient:
    """The gradient of the complete sequence during a backward pass, as far as it is known."""

    value: Tensor | None = None


class _Cut(torch.autograd.Function):
    """The first steps of what follows ``start`` in a sequence, and the rest, which is cut in the same way.

    The gradient of a rest that has been cut is the end of ``complete``; that of the last chunk, or none, begins a
    backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: int, start: int, complete: _Gradient) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.steps, ctx.start, ctx.complete = x.shape, steps, start, complete
        return x[:, :steps], x[:, steps:]

    @staticmethod
    def backward(ctx: Any, first: Tensor | None, rest: Tensor | None) -> tuple[Tensor, None, None, None]:
        (batch, length, *shape), end = ctx.shape, ctx.start + ctx.steps
        known = next(gradient for gradient in (first, rest) if gradient is not None)
        if torch.is_grad_enabled():  # the gradient will be differentiated itself
            if first is None:
                first = known.new_zeros(batch, ctx.steps, *shape)
            if rest is None:
                rest = known.new_zeros(batch, length - ctx.steps, *shape)
            return torch.cat([first, rest], 1), None, None, None
        if length <= 2 * ctx.steps or rest is None:  # nothing is written yet
            ctx.complete.value = known.new_empty(batch, ctx.start + length, *shape)
            ctx.complete.value[:, end:] = 0 if rest is None else rest
        value = ctx.complete.value
        value[:, ctx.start : end] = 0 if first is None else first
        if ctx.start == 0:
            ctx.complete.value = None
        return value[:, ctx.start :], None, None, None
