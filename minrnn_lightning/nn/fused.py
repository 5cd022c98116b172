"""What lies between the matrix products of a block in fewer passes over memory, where the kernels for it run.

``can_fuse`` decides whether they do. Elsewhere, and for the derivative of a gradient, PyTorch's operators compute the
same: modules called one after the other, and the functions of this file whose names begin with ``_eager``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from minrnn_lightning.ops.eager import state_dtype
from minrnn_lightning.ops.kernel_choice import runs_numba

MIN_ELEMENTS = 1 << 15  # with fewer, the fixed costs of a call are most of its time
TYPES = torch.float32, torch.bfloat16


def can_fuse(x: Tensor, *modules: nn.Module) -> bool:
    """Whether the kernels run on ``x``, with the parameters of modules, and pay."""
    return can_run(x, *modules) and x.numel() >= MIN_ELEMENTS  # last: an exporter would take it for a condition


def can_run(x: Tensor, *modules: nn.Module) -> bool:
    """Whether the kernels run on ``x``, with the parameters of modules.

    They do on CPUs in float32 and bfloat16, where Numba is there. They do not under whatever takes PyTorch's operators
    one by one (compilers, exporters, ``torch.func``, forward mode, modes of Python) or calls hooks of the modules.
    """
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not is_observed()
        and x.is_cpu
        and x.dtype in TYPES
        and product_dtype(x) in TYPES
        and all(map(_is_plain, modules))
        and runs_numba(x.device)
    )


def is_observed() -> bool:
    """Whether operators or modules of this thread are traced, transformed, counted, hooked or in forward mode."""
    hooks = nn.modules.module  # those of all modules
    return (
        is_transformed()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or bool(hooks._global_forward_pre_hooks or hooks._global_forward_hooks)
        or bool(hooks._global_backward_pre_hooks or hooks._global_backward_hooks)
    )


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` or forward mode is active in this thread, outside of compiled code."""
    if torch.compiler.is_compiling():
        return False
    active: bool = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return active


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its class says, from dense parameters in a type of the kernels."""
    return not (
        "forward" in vars(module)  # put there by wrappers, accelerate's for example
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ) and all(
        type(p) is nn.Parameter and p.is_cpu and p.dtype in TYPES for p in module._parameters.values() if p is not None
    )


def is_affine(norm: nn.Module) -> bool:
    """Whether a norm is PyTorch's LayerNorm with weight and bias, the one that the kernels compute."""
    return type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which a linear map of ``x`` multiplies."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def norm_conv(
    x: Tensor,
    norm: nn.LayerNorm,
    filters: Tensor | None = None,
    shift: Tensor | None = None,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return x once more, and the causal convolution of norm(x), or without filters norm(x), in ``product_dtype``.

    What uses x beside the norm should use the x that is returned: backward adds both gradients in its own pass.

    Args:
        x: (batch, length, dim), for which ``can_fuse`` is true.
        norm: The norm, for which ``is_affine`` is true.
        filters: (kernel size, dim), from lag 0 on.
        shift: The bias of the convolution, (dim,).
        state: norm(x) of the steps before the first, (batch, kernel size − 1, dim), without a gradient; zeros if None.
        reset: Bool (batch, length), True where the convolution sees nothing before.
    """
    given = x, norm.weight, norm.bias, filters, shift, state, reset, norm.eps, product_dtype(x)
    same, y = _NormConv.apply(*given)  # type: ignore[no-untyped-call]
    return same, y


def add_dropped(x: Tensor, y: Tensor, draws: Tensor | None, dropped: int) -> Tensor:
    """Compute x + y without elements of y whose draw is below ``dropped``, the others times 256 / (256 − dropped).

    Args:
        x: (batch, length, dim), for which ``can_fuse`` is true.
        y: The same shape.
        draws: The same shape, uint8; None drops none.
        dropped: From 1 to 255.
    """
    total: Tensor = _AddDropped.apply(x, y, draws, dropped)  # type: ignore[no-untyped-call]
    return total


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``; in bfloat16 on a CPU with the bias added inside the product."""
    if product_dtype(x) != torch.bfloat16 or bias is None or not can_fuse(x) or not _has_onednn():
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(*(each.to(torch.bfloat16) for each in (x, weight, bias)))  # type: ignore[no-untyped-call]
    return y


def apply_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """module(x), by ``linear`` where the module is PyTorch's own."""
    if type(module) is nn.Linear and can_fuse(x, module):
        return linear(x, module.weight, module.bias)
    y: Tensor = module(x)
    return y


def norm_mlp(x: Tensor, norm: nn.LayerNorm, mlp: nn.Module) -> tuple[Tensor, Tensor]:
    """Return x once more, see ``norm_conv``, and mlp(norm(x))."""
    if not is_affine(norm) or not can_fuse(x, norm) or x.dim() != 3:
        return x, mlp(norm(x))
    x, y = norm_conv(x, norm)
    return x, apply_mlp(y, mlp)


def apply_mlp(x: Tensor, mlp: nn.Module) -> Tensor:
    """mlp(x), in one function where it is a linear map, GELU and a linear map, in bfloat16."""
    layers = list(mlp) if type(mlp) is nn.Sequential else []
    plain = list(map(type, layers)) == [nn.Linear, nn.GELU, nn.Linear] and layers[1].approximate == "none"
    if not plain or x.dtype != torch.bfloat16 or not can_fuse(x, mlp, *layers) or not _has_onednn():
        y: Tensor = mlp(x)
        return y
    first, _, second = layers
    operands = x, first.weight, first.bias, second.weight, second.bias
    return _MLP.apply(*(each.to(torch.bfloat16) for each in operands))  # type: ignore[no-any-return,no-untyped-call]


def _has_onednn() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this processor."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _NormConv(torch.autograd.Function):
    """Norm and convolution in one pass; only x is kept for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        filters: Tensor | None,
        shift: Tensor | None,
        state: Tensor | None,
        reset: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias, filters, shift, state, reset)
        ctx.eps, ctx.dtype = eps, dtype
        ctx.set_materialize_grads(False)
        w, b, f, s, before = (_operand(each) for each in (weight, bias, filters, shift, state))
        return x, _kernels().norm_forward(x.contiguous(), w, b, eps, f, s, before, contiguous(reset), dtype)

    @staticmethod
    def backward(ctx: Any, d_same: Tensor | None, d_y: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, filters, shift, state, reset = ctx.saved_tensors
        inputs = x, weight, bias, filters, shift
        if d_y is None:
            return d_same, *(None,) * 8
        if torch.is_grad_enabled():  # the gradient is differentiated in turn
            function = partial(_eager_norm_conv, state=state, reset=reset, eps=ctx.eps, dtype=ctx.dtype)
            d_x, *others = differentiable_gradients(function, inputs, d_y)
            total = d_same if d_x is None else d_x if d_same is None else d_x + d_same
            return total, *others, *(None,) * 4
        residual = torch.zeros_like(x) if d_same is None else d_same.to(x.dtype)
        w, b, f, before = (_operand(each) for each in (weight, bias, filters, state))
        operands = d_y.contiguous(), residual.contiguous(), x.contiguous(), w, b, ctx.eps, f, before, contiguous(reset)
        d_x, sums = _kernels().norm_backward(*operands)
        d_weight, d_bias, d_shift, d_filters = sums[0], sums[1], sums[2], sums[3:]
        small: list[Tensor | None] = [d_weight.to(weight.dtype), d_bias.to(bias.dtype), None, None]
        if filters is not None:
            small[2:] = [d_filters.to(filters.dtype), d_shift.to(shift.dtype)]
        return d_x, *small, None, None, None, None


class _AddDropped(torch.autograd.Function):
    """The sum of x and of y after dropout; only the draws are kept for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, draws: Tensor | None, dropped: int) -> Tensor:
        ctx.save_for_backward(draws)
        ctx.dropped, ctx.dtype = dropped, y.dtype
        out: Tensor = _kernels().add_forward(x.contiguous(), y.contiguous(), draws, dropped)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (draws,) = ctx.saved_tensors
        if draws is None:
            d_y = grad.to(ctx.dtype)
        elif torch.is_grad_enabled():
            d_y = (grad * ((draws >= ctx.dropped) * (256 / (256 - ctx.dropped)))).to(ctx.dtype)
        else:
            d_y = _kernels().add_backward(grad.contiguous(), draws, ctx.dropped, ctx.dtype)
        return grad, d_y, None, None


class _Linear(torch.autograd.Function):
    """A linear map in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2), grad.flatten(0, -2).sum(0)


class _MLP(torch.autograd.Function):
    """Two linear maps with GELU between them, in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_1: Tensor, b_1: Tensor, w_2: Tensor, b_2: Tensor) -> Tensor:
        hidden = _product(x, w_1, b_1)
        ctx.save_for_backward(x, hidden, w_1, b_1, w_2, b_2)
        return _product(F.gelu(hidden), w_2, b_2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, w_1, b_1, w_2, b_2 = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is differentiated in turn
            return differentiable_gradients(_eager_mlp, (x, w_1, b_1, w_2, b_2), grad)
        d_hidden = grad @ w_2
        y, d_b_1 = _kernels().gelu_backward(d_hidden, hidden)  # from here on d_hidden is the gradient of ``hidden``
        grad, x, y = (each.flatten(0, -2) for each in (grad, x, y))
        d_w_1, d_w_2 = d_hidden.flatten(0, -2).t() @ x, grad.t() @ y
        return d_hidden @ w_1, d_w_1, d_b_1.to(b_1.dtype), d_w_2, grad.sum(0)


def differentiable_gradients(
    function: Callable[..., Any], inputs: Sequence[Tensor | None], *grads: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of inputs, with derivatives of their own, from those of the outputs of ``function``.

    Args:
        function: From the inputs to a tensor or a tuple of them.
        inputs: Its arguments; the result has None for each that requires no gradient.
        grads: The gradient of each output.
    """
    # Views, since an input that was computed from another one is not to be differentiated through it.
    views = [x.view_as(x) if x is not None and x.requires_grad else x for x in inputs]
    made = function(*views)
    pairs = zip([made] if isinstance(made, Tensor) else made, grads, strict=True)
    outputs, grad_outputs = zip(*[(y, grad) for y, grad in pairs if y.requires_grad], strict=True)
    needed = [x for x in views if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(outputs, needed, grad_outputs, create_graph=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in views)


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute x · weightᵀ + bias, whose sum ``F.linear`` starts by writing the bias to every row."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def _eager_mlp(x: Tensor, w_1: Tensor, b_1: Tensor, w_2: Tensor, b_2: Tensor) -> Tensor:
    """The equations of ``_MLP``."""
    return F.linear(F.gelu(F.linear(x, w_1, b_1)), w_2, b_2)


def _eager_norm_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor | None,
    shift: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """The equations of ``_NormConv``."""
    wide = state_dtype(x.dtype)
    y = F.layer_norm(x.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps)
    if filters is None or shift is None:
        return y.to(dtype)
    past = len(filters) - 1
    start = y.new_zeros(x.shape[0], past, x.shape[2]) if state is None else state.to(wide)
    padded, total = torch.cat([start, y], 1), shift.to(wide) + filters[0].to(wide) * y
    visible = visible_lags(x.new_zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset, past)
    return add_lags(total, filters.to(wide), padded, visible).to(dtype)


def visible_lags(reset: Tensor, past: int) -> list[Tensor]:
    """For each lag from 0 to ``past``, whether the step so far back is of the same sequence, (batch, length)."""
    visible = [torch.ones_like(reset)]
    for lag in range(past):
        visible.append(visible[-1] & ~F.pad(reset, (lag, 0))[:, : reset.shape[1]])
    return visible


def add_lags(y: Tensor, filters: Tensor, padded: Tensor, visible: list[Tensor]) -> Tensor:
    """Add to (batch, length, dim) what the steps before each one contribute to a convolution with resets.

    Args:
        y: The contributions of lag 0.
        filters: (kernel size, dim), from lag 0 on.
        padded: The inputs with the kernel size − 1 steps before the first.
        visible: See ``visible_lags``.
    """
    past, length = len(filters) - 1, y.shape[1]
    for lag in range(1, past + 1):
        y = y + filters[lag] * (padded[:, past - lag : past - lag + length] * visible[lag].unsqueeze(-1))
    return y


def _kernels() -> Any:
    from minrnn_lightning.ops.cpu import block  # which imports Numba

    return block


def _operand(x: Tensor | None) -> Tensor | None:
    """A small operand in the type of the kernels."""
    return None if x is None else x.detach().float().contiguous()


def contiguous(x: Tensor | None) -> Tensor | None:
    """The tensor without gaps in memory, or None."""
    return None if x is None else x.contiguous()
