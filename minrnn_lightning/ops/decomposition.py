"""The scan as PyTorch's higher-order operator ``scan``, of which ONNX exporters make the standard operator ``Scan``.

``torch.onnx.export(..., dynamo=True)`` finds it in PyTorch's table of decompositions inside ``scan_as_loop``. All other
users of the operator keep its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table, meta_table

from minrnn_lightning.ops import eager
from minrnn_lightning.ops.operators import scan, scan_and_state


def _scan(*args: Any) -> Tensor:
    """``minrnn::scan``."""
    return _scan_and_state(*args)[0]


def _scan_and_state(
    k: Tensor,
    v: Tensor,
    f: Tensor | None,
    initial: Tensor | None,
    reset: Tensor | None,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """``minrnn::scan_and_state``: decay and update of all steps at once, then one product and one sum for each."""
    from torch._higher_order_ops.scan import scan_op

    a, b = (x.transpose(0, 1) for x in eager.transition(k, v, f, reset, kind))
    if reverse:
        a, b = a.flip(0), b.flip(0)
    initial = torch.zeros_like(b[0]) if initial is None else initial
    final, h = scan_op(_step, [initial], [a, b], ())
    return (h.flip(0) if reverse else h).transpose(0, 1).to(k.dtype), final


def _step(h: Tensor, a_t: Tensor, b_t: Tensor) -> list[Tensor]:
    """The next state, to carry on and to keep."""
    h = a_t * h + b_t
    return [h, h.clone()]


@contextmanager
def scan_as_loop() -> Iterator[None]:
    """Let exporters decompose the scan inside the context; compilers would refuse an operator that has two ways."""
    entries: dict[Any, Any] = {scan: _scan, scan_and_state: _scan_and_state}
    # What is in the second table keeps its fake kernel; else fake tensors of symbolic sizes would be decomposed.
    for table in (decomposition_table, meta_table):
        table.update(entries)
    try:
        yield
    finally:
        for table in (decomposition_table, meta_table):
            for op in entries:
                del table[op]
