"""The operators of the scan as others, for exporters, which know only those of PyTorch.

Under ``torch.onnx.export(..., dynamo=True)`` a scan is PyTorch's higher-order operator ``scan``, of which the exporter
makes the standard operator ``Scan``. A decomposition in PyTorch's own table would do the same, but compilers refuse an
operator that has one and that they run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minrnn_lightning.ops import eager
from minrnn_lightning.ops.operators import scan, scan_and_state

LinearScan = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def decompositions(linear_scan: LinearScan) -> dict[Any, Callable[..., Any]]:
    """What the operators of the scan are made of, for exporters.

    Args:
        linear_scan: Of decays, updates, (batch, length, dim), and an initial state or None: every state and the last.
    """

    def states_and_last(
        k: Tensor,
        v: Tensor,
        f: Tensor | None,
        initial: Tensor | None,
        reset: Tensor | None,
        kind: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        a, b = eager.transition(k, v, f, reset, kind)
        h, final = linear_scan(a.flip(1), b.flip(1), initial) if reverse else linear_scan(a, b, initial)
        return (h.flip(1) if reverse else h).to(k.dtype), final

    return {scan: lambda *args: states_and_last(*args)[0], scan_and_state: states_and_last}


def exporting_to_onnx() -> bool:
    """Whether the call is part of ``torch.onnx.export(..., dynamo=True)``."""
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def run(op: Any, *args: Any) -> Any:
    """Run ``scan`` or ``scan_and_state``, during an export to ONNX as a loop."""
    return _loops[op](*args) if exporting_to_onnx() else op(*args)


def loop(
    step: Callable[..., tuple[Sequence[Tensor], Tensor]],
    states: Sequence[Tensor],
    inputs: Sequence[Tensor],
    constants: Sequence[Tensor] = (),
) -> tuple[list[Tensor], Tensor]:
    """Call a step for each of a sequence, as PyTorch's operator ``scan``.

    Args:
        step: Maps the states, the inputs of one step and the constants to the next states and an output.
        states: Those before the first step, the batch first.
        inputs: (batch, length, ...) each.
        constants: All other tensors that the step uses.

    Returns:
        The states after the last step, and every output, (batch, length, ...).
    """
    from torch._higher_order_ops.scan import scan_op

    def combine(*given: Tensor) -> list[Tensor]:
        after, output = step(*given)
        return [*after, output.clone()]  # what goes on must not share memory with what is kept

    *final, outputs = scan_op(combine, list(states), [x.transpose(0, 1) for x in inputs], tuple(constants))
    return final, outputs.transpose(0, 1)


def _linear_scan_loop(a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """One product and one sum for each step."""
    initial = torch.zeros_like(b[:, 0]) if initial is None else initial
    (final,), h = loop(_linear_step, [initial], [a, b])
    return h, final


def _linear_step(h: Tensor, a_t: Tensor, b_t: Tensor) -> tuple[list[Tensor], Tensor]:
    h = a_t * h + b_t
    return [h], h


_loops = decompositions(_linear_scan_loop)
