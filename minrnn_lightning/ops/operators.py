"""The scan as a PyTorch operator, ``torch.ops.minrnn.scan``, with its derivatives of every order.

``linear_scan`` and ``gated_scan`` are this one operator over two sequences k and v whose meaning is its ``kind``:

    linear      h_t = k_t · h_{t-1} + v_t
    positive    h_t = h_{t-1} + z_t · (g(v_t) − h_{t-1})       g(v) = v + ½ for v ≥ 0, σ(v) below
    identity    h_t = h_{t-1} + z_t · (v_t − h_{t-1})

The last two are minGRU of "Were RNNs All We Needed?" (https://arxiv.org/abs/2410.01201, sections 3.1 and B.2) with
z = σ(k), and with a third sequence f its minLSTM, z = σ(k) / (σ(k) + σ(f)) (sections 3.2 and B.2).
Backward, with G_t = ∂L/∂h_t + a_{t+1} · G_{t+1} for h_t = a_t · h_{t-1} + b_t, is a scan in the opposite direction, and
a tangent is one more scan, dh_t = a_t · dh_{t-1} + da_t · h_{t-1} + db_t. A first gradient is one fused operator; a
gradient that is differentiated in turn is made of operators that have derivatives themselves, the linear scan included.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import _SingleLevelFunction

from minrnn_lightning.ops import eager
from minrnn_lightning.ops.kernel_choice import run_kernel

# Not torch.library.custom_op: its first call imports torch._dynamo, which takes longer than all the rest.
_library: Any = torch.library.Library("minrnn", "FRAGMENT")  # type: ignore[no-untyped-call]
_scan_arguments = "(Tensor k, Tensor v, Tensor? f, Tensor? initial, Tensor? reset, str kind, bool reverse)"
_library.define(f"scan{_scan_arguments} -> Tensor")
_library.define(f"scan_and_state{_scan_arguments} -> (Tensor, Tensor)")
_library.define(
    "scan_backward(Tensor grad, Tensor k, Tensor v, Tensor? f, Tensor h, Tensor? initial, Tensor? reset, str kind,"
    " bool reverse) -> (Tensor, Tensor, Tensor, Tensor)"
)
scan = torch.ops.minrnn.scan.default
scan_and_state = torch.ops.minrnn.scan_and_state.default
scan_backward = torch.ops.minrnn.scan_backward.default


def _scan(k: Tensor, *rest: Any) -> Tensor:
    """The operator behind both scans: every state, in the type of ``k``."""
    states: Tensor = run_kernel("forward", k, *rest)[0]
    return states


def _scan_and_state(k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Every state, in the type of ``k``, and the last one once more, in that of the state and without derivatives."""
    states: tuple[Tensor, Tensor] = run_kernel("forward", k, *rest)
    return states


def _scan_backward(grad: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, f (an empty one if there is none) and the initial state."""
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = run_kernel("backward", grad, k, *rest)
    return gradients


def _fake_scan(k: Tensor, *_: Any) -> Tensor:
    return k.new_empty(k.shape)


def _fake_scan_and_state(k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return k.new_empty(k.shape), k.new_empty((k.shape[0], k.shape[2]), dtype=eager.state_dtype(k.dtype))


def _fake_scan_backward(
    grad: Tensor, k: Tensor, v: Tensor, f: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, dim = k.shape
    d_f = k.new_empty(batch, 0 if f is None else length, dim)
    return (
        k.new_empty(k.shape),
        k.new_empty(k.shape),
        d_f,
        k.new_empty((batch, dim), dtype=eager.state_dtype(k.dtype)),
    )


class _Scan(_SingleLevelFunction):
    """An operator of the two with its derivatives, at one level of ``torch.func``'s nested transforms."""

    @staticmethod
    def forward(op: Any, keyset: Any, grad_enabled: bool, *args: Any) -> Any:
        with torch.set_grad_enabled(grad_enabled), _set_fwd_grad_enabled(True):  # the outer levels differentiate too
            return _below_autograd(op, keyset, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.op, _, _, k, v, f, initial, reset, ctx.kind, ctx.reverse = inputs
        if ctx.op is scan_and_state:
            output, final = output
            ctx.mark_non_differentiable(final)
        ctx.save_for_backward(k, v, f, output, initial, reset)
        ctx.save_for_forward(k, v, f, output, initial, reset)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        k, v, f, h, initial, reset = ctx.saved_tensors
        given = grad, k, v, f, h, initial, reset, ctx.kind, ctx.reverse
        if torch.is_grad_enabled() or _has_tangent(grad, k, v, f, initial):  # the gradient is differentiated in turn
            (d_k, d_v, *d_f), d_initial = eager.vjp(_linear_scan, *given)
        else:
            d_k, d_v, *d_f, d_initial = scan_backward(*given)
        gradients = d_k, d_v, None if f is None else d_f[0], None if initial is None else d_initial
        return None, None, None, *gradients, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        _, _, _, d_k, d_v, d_f, d_initial, *_ = tangents
        with _set_fwd_grad_enabled(True):  # the outer levels differentiate this; at its own level a tangent has none
            k, v, f, h, initial, reset = map(_primal, ctx.saved_tensors)
            given = k, v, f, h, initial, reset, ctx.kind, ctx.reverse
            tangent = eager.jvp(_linear_scan, [d_k, d_v] if f is None else [d_k, d_v, d_f], d_initial, *given)
            return (tangent, None) if ctx.op is scan_and_state else tangent


_apply: Any = _Scan.apply  # type: ignore[attr-defined]
_unpack: Any = unpack_dual  # PyTorch does not say its types


def _linear_scan(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> Tensor:
    states: Tensor = scan(a, b, None, initial, None, "linear", reverse)
    return states


def _autograd(op: Any, keyset: Any, *args: Any) -> Any:
    """One of the two operators where gradients or tangents may be required.

    ``torch.library.register_autograd`` would support neither forward mode nor ``torch.func``.
    """
    tensors = [x for x in args if isinstance(x, Tensor)]
    if torch._C._are_functorch_transforms_active():
        with enable_single_level_autograd_function():
            return _apply(op, keyset, torch.is_grad_enabled(), *args)
    if (torch.is_grad_enabled() and any(x.requires_grad for x in tensors)) or _has_tangent(*tensors):
        return _apply(op, keyset, torch.is_grad_enabled(), *args)
    return _below_autograd(op, keyset, *args)


def _below_autograd(op: Any, keyset: Any, *args: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _primal(x: Any) -> Any:
    """The tensor without its tangent, if it has one."""
    return x if x is None else _unpack(x, level=0).primal


def _has_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors is differentiated in forward mode."""
    return any(x is not None and _unpack(x).tangent is not None for x in tensors)


def _no_gradient(*_: Any) -> Any:
    raise RuntimeError("minrnn::scan_backward has no gradient of its own; that of minrnn::scan has every one")


def _batched(op: Any) -> Any:
    """The vmap rule of a scan: the mapped dimension joins the batch."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def join(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.movedim(dim, 0) if dim is not None else x.expand(size, *x.shape)
            return x.flatten(0, 1)

        def split(x: Tensor) -> Tensor:
            return x.view(size, x.shape[0] // size, *x.shape[1:])

        out = op(*map(join, args, in_dims))
        if isinstance(out, Tensor):
            return split(out), 0
        return tuple(map(split, out)), (0,) * len(out)

    return rule


for _op, _kernel, _fake in (
    (scan, _scan, _fake_scan),
    (scan_and_state, _scan_and_state, _fake_scan_and_state),
    (scan_backward, _scan_backward, _fake_scan_backward),
):
    _library.impl(_op, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(_op, _fake)
    torch.library.register_vmap(_op, _batched(_op))
for _op in (scan, scan_and_state):
    _library.impl(_op, functools.partial(_autograd, _op), "Autograd", with_keyset=True)
torch.library.register_autograd(scan_backward, _no_gradient)
