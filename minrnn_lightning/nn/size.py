"""The size of a model: the width for a given number of parameters, and the operations per token."""

import os
import re
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minrnn_lightning.errors import InputError
from minrnn_lightning.nn.backbone import Backbone

Shape = tuple[int, ...]

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
TOLERANCE = 0.05  # relative to the target
SEARCH_WIDTHS = 128  # widths to try where the first one gives no model, such as one that the heads do not divide


def parse_count(count: int | str) -> int:
    """A number like 6300000 or 6.3M.

    Raises:
        InputError: It is neither.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)", str(count).strip().lower())
    if match is None:
        raise InputError(f"match_parameters must be a number of parameters such as 800k or 6.3M, got {count!r}")
    return round(float(match[1]) * UNITS[match[2]])


def matching_dim(parameters: Callable[[int], int], target: int) -> int:
    """The even width whose number of parameters is nearest to the target.

    Args:
        parameters: The number that a width gives; a ``ValueError`` where it gives no model, as for heads that do not
            divide it.
        target: The number to reach, within 5 %.

    Raises:
        InputError: No width comes within 5 %, or float32 weights of that number would not fit into memory.
    """
    if hasattr(os, "sysconf"):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if 4 * target > memory:
            raise InputError(
                f"match_parameters {target:,} cannot be met: its weights take {4 * target / 1e9:,.0f} GB, and this "
                f"machine has {memory / 1e9:,.0f} GB of memory"
            )

    def first(dims: range) -> int:
        """The first width that gives a model."""
        for dim in dims:
            try:
                parameters(dim)
            except InputError:  # a mixer does not fit this width
                if dim == dims[-1]:
                    raise
            else:
                return dim
        raise InputError(f"match_parameters {target:,} cannot be met: no width gives a model")

    low, high = 0, 2
    while parameters(first(range(high, high + SEARCH_WIDTHS, 2))) < target:
        low, high = high, 2 * high
    while high - low > 2:
        middle = (low + high) // 4 * 2
        low, high = (
            (middle, high) if parameters(first(range(middle, middle + SEARCH_WIDTHS, 2))) < target else (low, middle)
        )
    wider = first(range(high, high + SEARCH_WIDTHS, 2))
    narrower = first(range(low, max(0, low - SEARCH_WIDTHS), -2)) if low else wider
    dim = min(wider, narrower, key=lambda dim: abs(parameters(dim) - target))
    if abs(parameters(dim) - target) > TOLERANCE * target:
        raise InputError(
            f"match_parameters {target:,} cannot be met: width {dim} has {parameters(dim):,} parameters, the "
            "nearest possible; give another number or another depth"
        )
    return dim


def flops(backbone: Backbone, length: int) -> float:
    """Floating-point operations of a forward pass per token, two for each multiply-add.

    Matrix products, convolutions and attention are counted, at that length (attention over all pairs of steps); scans,
    Fourier transforms and activations are not.
    """
    # On the meta device, and with kernels whose products the counter counts.
    weights = {name: tensor.to("meta") for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]}
    x = next(backbone.parameters()).new_empty(1, length, backbone.norm.normalized_shape[0], device="meta")
    layers = {torch.ops.minrnn.rnn: _rnn_flops}
    with FlopCounterMode(display=False, custom_mapping=layers) as counter, sdpa_kernel(SDPBackend.MATH):
        functional_call(backbone, weights, (x,))
    total: int = counter.get_total_flops()
    return total / length


def products(head: nn.Module) -> int:
    """Floating-point operations of the linear layers in ``head``, for one row of their input."""
    return sum(2 * p.numel() for p in head.parameters() if p.ndim == 2)


def _rnn_flops(mode: str, x: Shape, state: list[Shape], weights: list[Shape], **_: object) -> int:
    """Floating-point operations of ``nn.GRU`` or ``nn.LSTM``: the products of its two matrices at every step."""
    return 2 * x[0] * x[1] * sum(rows * columns for rows, columns in weights[:2])
