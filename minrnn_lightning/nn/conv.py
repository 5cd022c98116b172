"""Causal depthwise convolution along the length, with a state for streaming."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.nn import functional as F

from minrnn_lightning.nn.fused import add_lags, can_fuse, is_affine, norm_conv, visible_lags
from minrnn_lightning.nn.marks import Marked, without_muon
from minrnn_lightning.nn.sequence_parallel import Shardable
from minrnn_lightning.nn.state import where
from minrnn_lightning.ops.eager import state_dtype
from minrnn_lightning.ops.sharded import steps_before


class CausalConv(Marked, Shardable):
    """y_t = Σ_i w_i · x_{t-i} + b over the last ``kernel_size`` steps, each channel with weights of its own.

    The state is the last kernel_size − 1 inputs, (batch, kernel_size − 1, dim), float32 (float64 for float64 inputs).

    Args:
        dim: Number of channels.
        kernel_size: Number of steps that an output depends on, including its own.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        bound = 1 / math.sqrt(kernel_size)
        self.weight = without_muon(torch.empty(kernel_size, dim).uniform_(-bound, bound))  # row i: lag i
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolve (batch, length, dim); where ``reset`` (batch, length) is True, a new sequence starts."""
        batch, length, _ = x.shape
        past = self.kernel_size - 1
        if state is None:
            state = self.initial_state(batch)
        wide, last = state_dtype(x.dtype), None
        if self.group is not None and past:
            state, last = steps_before(x, state.to(wide), reset, self.group)
        padded = torch.cat([state.to(x.dtype), x], 1)
        if length == 0:
            # Not x itself: a process whose part is empty takes part in the backward pass of the others.
            return (x, padded.to(wide)) if last is None else (padded[:, past:], last)
        if reset is None:
            traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
            if x.is_cpu and not traced:
                y: Tensor = _Depthwise.apply(*_autocast(padded, self.weight, self.bias))  # type: ignore[no-untyped-call]
            else:
                y = _depthwise(padded, self.weight, self.bias)
            return y, padded[:, length:].to(wide) if last is None else last
        padded = padded.to(wide)
        visible = visible_lags(reset, past)
        y = add_lags(self.bias + self.weight[0] * padded[:, past:], self.weight, padded, visible)
        return y.to(x.dtype), padded[:, length:] * _kept(visible) if last is None else last

    def after_norm(
        self, norm: nn.LayerNorm, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` once more, to be used instead of it from here on, and ``forward`` of norm(x)."""
        past = self.kernel_size - 1
        known = type(self) is CausalConv and is_affine(norm) and self.group is None
        if not known or not can_fuse(x, norm, self) or x.shape[1] < max(past, 1):
            return x, *self(norm(x), state, reset)
        if state is not None and past and state.requires_grad:  # of which the kernel has no gradient: between chunks
            x, y = norm_conv(x, norm, self.weight, self.bias, None, reset)
            y[:, :past] += self._of_state(state, reset).to(y.dtype)
        else:
            x, y = norm_conv(x, norm, self.weight, self.bias, state, reset)
        wide = state_dtype(x.dtype)
        last, weight, bias = (each.to(wide) for each in (x[:, x.shape[1] - past :], norm.weight, norm.bias))
        after = F.layer_norm(last, norm.normalized_shape, weight, bias, norm.eps)
        return x, y, after if reset is None else after * _kept(visible_lags(reset[:, -past:], past))

    def _of_state(self, state: Tensor, reset: Tensor | None) -> Tensor:
        """What the inputs before the first step add to the first kernel_size − 1 sums."""
        past = state.shape[1]
        padded = F.pad(state, (0, 0, 0, past))
        starts = state.new_zeros(state.shape[:2], dtype=torch.bool) if reset is None else reset[:, :past]
        return add_lags(torch.zeros_like(state), self.weight, padded, visible_lags(starts, past))

    def step(self, x_t: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of ``forward``: (batch, dim) and the state to the same; ``reset`` is (batch,)."""
        if reset is not None:
            state = where(reset, self.initial_state(x_t.shape[0]), state)
        wide = state_dtype(x_t.dtype)  # of the sum too, as in ``forward``
        window = torch.cat([state.to(wide), x_t.unsqueeze(1).to(wide)], 1)
        y_t = self.bias + (self.weight.flip(0) * window).sum(1)
        return y_t.to(x_t.dtype), window[:, 1:]

    def initial_state(self, batch_size: int) -> Tensor:
        """No input yet: zeros, (batch, kernel_size − 1, dim)."""
        shape = batch_size, self.kernel_size - 1, self.weight.shape[1]
        return self.weight.new_zeros(shape, dtype=state_dtype(self.weight.dtype))


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Every sum of kernel_size steps: (batch, length, dim) to (batch, length − kernel_size + 1, dim)."""
    # As an image of height 1 with the channels last: the layout of x, and the fastest depthwise convolution.
    image, filters = x.transpose(1, 2).unsqueeze(2), weight.flip(0).t()[:, None, None]
    return F.conv2d(image, filters, bias, groups=x.shape[2]).squeeze(2).transpose(1, 2)


class _Depthwise(torch.autograd.Function):
    """``_depthwise`` with another backward pass: on CPUs PyTorch's takes ten times as long as forward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _depthwise(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        d_x, d_weight, d_bias = tangents
        with _set_fwd_grad_enabled(True):  # for an outer jvp; at this level a tangent has none
            x, weight = (unpack_dual(saved, level=0).primal for saved in ctx.saved_tensors)  # type: ignore[no-untyped-call]
            return _depthwise(d_x, weight, None) + _depthwise(x, d_weight, d_bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        past, length = len(weight) - 1, grad.shape[1]
        d_x = _depthwise(F.pad(grad, (0, 0, past, past)), weight.flip(0), None) if ctx.needs_input_grad[0] else None
        d_weight = [(grad * x[:, past - lag : past - lag + length]).sum((0, 1)) for lag in range(past + 1)]
        return d_x, torch.stack(d_weight), grad.sum((0, 1))


def _autocast(*tensors: Tensor) -> Iterator[Tensor]:
    """The tensors in the type in which autocast convolves on a CPU: float64 stays what it is."""
    enabled = torch.is_autocast_enabled("cpu") and torch.float64 not in [tensor.dtype for tensor in tensors]
    return (tensor.to(torch.get_autocast_dtype("cpu")) if enabled else tensor for tensor in tensors)


def _kept(visible: list[Tensor]) -> Tensor:
    """Whether the steps that the state holds are of the last one's sequence, (batch, kernel_size − 1, 1)."""
    *lags, _ = visible
    kept = [each[:, -1] for each in reversed(lags)]
    return (torch.stack(kept, 1) if kept else visible[0][:, :0]).unsqueeze(-1)
