"""The scan as a PyTorch operator, ``torch.ops.minrnn.scan``, with its derivatives of every order.

``linear_scan`` and ``gated_scan`` are this one operator over two sequences k and v whose meaning is its ``kind``:

    linear      h_t = k_t · h_{t-1} + v_t
    positive    h_t = h_{t-1} + z_t · (g(v_t) − h_{t-1})       g(v) = v + ½ for v ≥ 0, σ(v) below
    identity    h_t = h_{t-1} + z_t · (v_t − h_{t-1})

The last two are minGRU of "Were RNNs All We Needed?" (https://arxiv.org/abs/2410.01201, sections 3.1 and B.2) with
z = σ(k), and with a third sequence f its minLSTM, z = σ(k) / (σ(k) + σ(f)) (sections 3.2 and B.2).
Backward, with G_t = ∂L/∂h_t + a_{t+1} · G_{t+1} for h_t = a_t · h_{t-1} + b_t, is the same scan run the other way.
"""

from typing import Any

import torch
from torch import Tensor

from minrnn_lightning.ops import eager
from minrnn_lightning.ops.kernel_choice import run_kernel

# Not torch.library.custom_op: its first call imports torch._dynamo, which takes longer than all the rest.
torch.library.define(
    "minrnn::scan",
    "(Tensor k, Tensor v, Tensor? f, Tensor? initial, Tensor? reset, str kind, bool reverse) -> Tensor",
)
torch.library.define(
    "minrnn::scan_backward",
    "(Tensor grad, Tensor k, Tensor v, Tensor? f, Tensor h, Tensor? initial, Tensor? reset, str kind, bool reverse)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
scan = torch.ops.minrnn.scan.default
scan_backward = torch.ops.minrnn.scan_backward.default


def _scan(k: Tensor, *rest: Any) -> Tensor:
    """The operator behind both scans: every state, in the type of ``k``."""
    states: Tensor = run_kernel("forward", k, *rest)
    return states


def _scan_backward(grad: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, f (an empty one if there is none) and the initial state."""
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = run_kernel("backward", grad, k, *rest)
    return gradients


def _fake_scan(k: Tensor, *_: Any) -> Tensor:
    return k.new_empty(k.shape)


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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    k, v, f, initial, reset, ctx.kind, ctx.reverse = inputs
    ctx.save_for_backward(k, v, f, output, initial, reset)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    k, v, f, h, initial, reset = ctx.saved_tensors
    d_k, d_v, d_f, d_initial = scan_backward(grad, k, v, f, h, initial, reset, ctx.kind, ctx.reverse)
    return d_k, d_v, None if f is None else d_f, None if initial is None else d_initial, None, None, None


def _no_second_gradient(*_: Any) -> Any:
    raise RuntimeError("the gradient of a scan has no gradient of its own: call backward without create_graph")


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


for _op, _kernel, _fake in ((scan, _scan, _fake_scan), (scan_backward, _scan_backward, _fake_scan_backward)):
    torch.library.impl(_op.name(), "CompositeExplicitAutograd", _kernel)  # type: ignore[no-untyped-call]
    torch.library.register_fake(_op, _fake)
    torch.library.register_vmap(_op, _batched(_op))
torch.library.register_autograd(scan, _gradient, setup_context=_keep)
torch.library.register_autograd(scan_backward, _no_second_gradient)
