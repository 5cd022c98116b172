"""The scan of Mamba: a state-space model whose step size, input and output weights depend on the input."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minrnn_lightning.nn.fused import can_run, contiguous, differentiable_gradients, is_transformed
from minrnn_lightning.ops import linear_scan
from minrnn_lightning.ops.scan import check_sequences


def selective_scan(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(Δ_t A) · h_{t-1} + Δ_t B_t u_t, y_t = C_t h_t, with A diagonal for each channel.

    Memory does not grow with ``state_size``, as backward computes the states again. On CPUs in float32 it is one
    compiled loop. Elsewhere one number of the state is computed at a time; but where ``mamba_ssm`` is installed, its
    kernel runs on CUDA tensors unless there is an initial state, a reset or ``torch.compile``, none of which it takes;
    the final state that it returns carries no gradient.

    Args:
        u: Inputs, (batch, length, inner).
        dt: Δ, the step sizes, (batch, length, inner), at least 0.
        a: A, at most 0, (inner, state_size).
        b: B, (batch, length, state_size).
        c: C, (batch, length, state_size).
        initial: The state before the first step, (batch, inner, state_size); zeros if None.
        reset: Bool (batch, length), True where the state before that step is replaced by zeros.

    Returns:
        y, (batch, length, inner), and the state after the last step, (batch, inner, state_size).

    Raises:
        ValueError: A shape does not fit.
        TypeError: ``reset`` is not bool.
    """
    check_sequences({"u": u, "dt": dt}, None, reset)
    if initial is not None:
        if initial.shape != (u.shape[0], *a.shape):
            raise ValueError(f"initial must have shape {(u.shape[0], *a.shape)}, got {tuple(initial.shape)}")
        initial = initial.to(u.dtype)
    fits = u.is_cuda and u.dtype == torch.float32 and initial is None and reset is None
    kernel = _mamba_ssm() if fits and not torch.compiler.is_compiling() else None
    if kernel is not None:
        u, dt, b, c = (x.transpose(1, 2) for x in (u, dt, b, c))
        y, h = kernel(u, dt, a, b, c, return_last_state=True)
        return y.transpose(1, 2), h.detach()
    if u.dtype == torch.float32 and can_run(u):
        y, h = _SelectiveScan.apply(u, dt, a, b, c, initial, reset, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
        return y, h
    return _scan_each(u, dt, a, b, c, initial, reset)


def _scan_each(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``selective_scan`` by PyTorch's operators, one number of the state at a time."""
    run: Callable[..., tuple[Tensor, Tensor]] = functools.partial(
        checkpoint, _scan_one, use_reentrant=False, preserve_rng_state=False
    )
    if is_transformed():
        run = _scan_one  # torch.func refuses the hooks with which checkpoint saves memory
    y, final = torch.zeros_like(u), []
    for n in range(a.shape[1]):
        one = a[:, n], b[..., n : n + 1], c[..., n : n + 1], None if initial is None else initial[..., n]
        part, h = run(u, dt, *one, reset)
        y = y + part
        final.append(h)
    return y, torch.stack(final, -1)


def _scan_one(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, initial: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What one number of the state adds to y, and its value after the last step."""
    h = linear_scan(torch.exp(dt * a), dt * b * u, initial, reset=reset)
    return c * h, h[:, -1].clone()  # a view would keep all of h


class _SelectiveScan(torch.autograd.Function):
    """The compiled loop, which has the numbers of the state before the channels."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        dt: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        initial: Tensor | None,
        reset: Tensor | None,
        has_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        keep = has_grad and any(ctx.needs_input_grad)
        operands = [x.contiguous() for x in (u, dt, a.mT, b, c)]
        start = None if initial is None else initial.mT.contiguous()
        y, end, kept = _kernels().forward(*operands, start, contiguous(reset), keep=keep)
        ctx.save_for_backward(u, dt, a, b, c, initial, reset, kept)
        return y, end.mT

    @staticmethod
    def backward(ctx: Any, d_y: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a, b, c, initial, reset, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is differentiated in turn
            function, inputs = functools.partial(_scan_each, reset=reset), (u, dt, a, b, c, initial)
            return *differentiable_gradients(function, inputs, d_y, d_end), None, None
        operands = [x.contiguous() for x in (d_y, d_end.mT, u, dt, a.mT, b, c)]
        d_u, d_dt, d_a, d_b, d_c, d_start = _kernels().backward(*operands, contiguous(reset), kept)
        return d_u, d_dt, d_a.mT, d_b, d_c, None if initial is None else d_start.mT, None, None


def _kernels() -> Any:
    from minrnn_lightning.ops.cpu import selective  # which imports Numba

    return selective


@functools.cache
def _mamba_ssm() -> Callable[..., Any] | None:
    """The fused scan of ``mamba_ssm``, or None where that is not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    kernel: Callable[..., Any] = selective_scan_fn
    return kernel
