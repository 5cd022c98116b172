"""The scans on a GPU against a loop in float64: every kind, type, direction and layout, in one pass and in chunks."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, product
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minrnn_lightning.ops import gated_scan, linear_scan
from minrnn_lightning.ops.eager import candidate, state_dtype
from minrnn_lightning.ops.reference import linear_scan_loop
from minrnn_lightning.signals import start_worker

TOLERANCES = {  # of the error relative to the largest magnitude; three times as much for gradients
    "float64": 1e-13,
    "float32": 2e-6,
    "bfloat16": 1e-2,
    "float16": 2e-3,
}
SCANS = ("linear_scan", "gated_scan, identity", "gated_scan, positive", "gated_scan, positive, forget gate")
SHAPES = [(2, 1, 1), (3, 37, 19), (64, 200, 96), (1, 5000, 33), (2, 2500, 48)]  # the last two are cut into chunks
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "length first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channels second": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "part of a projection": lambda x: torch.cat([x, x, x], -1)[..., x.shape[2] : 2 * x.shape[2]],
}
LARGE = (9, 2**20, 256)  # more elements than 32 bits count


class Errors(NamedTuple):
    """Largest errors of the states and of the gradients, relative to the largest exact magnitude, and other faults."""

    states: float
    gradients: float
    faults: list[str]


def check_all(device: torch.device) -> list[dict[str, Any]]:
    """Check every scan in every type; the groups run in processes of their own, since most of the time is compilation.

    Args:
        device: The GPU.

    Returns:
        A row for each scan and type: ``name``, ``dtype``, ``cases``, ``states`` and ``gradients`` (largest errors),
        ``tolerance`` and ``faults``, an empty list where all is right.
    """
    groups = list(product(SCANS, TOLERANCES))
    workers = min(len(groups), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
        rows = list(pool.map(partial(check_group, device=device), *zip(*groups, strict=True)))
    return [*rows, check_large(device)]


def check_group(scan: str, dtype: str, device: torch.device) -> dict[str, Any]:
    """Check one scan in one type at every shape, forwards without and backwards with resets and an initial state."""
    cases, states, gradients = 0, 0.0, 0.0
    faults: list[str] = []
    layouts = cycle(LAYOUTS)
    for shape, reverse in product(SHAPES, (False, True)):
        torch.use_deterministic_algorithms(shape != SHAPES[-1])  # with a fixed tile: trying all of them takes minutes
        errors = check_case(scan, dtype, shape, reverse, next(layouts), device)
        where = f"{shape}, {'reversed, resets, initial state' if reverse else 'forwards'}"
        faults += [f"{where}: {fault}" for fault in errors.faults]
        cases, states, gradients = cases + 1, max(states, errors.states), max(gradients, errors.gradients)
    tolerance = TOLERANCES[dtype]
    row = {"name": scan, "dtype": dtype, "cases": cases, "states": states, "gradients": gradients}
    return row | {"tolerance": tolerance, "faults": faults}


def check_case(
    scan: str, dtype: str, shape: tuple[int, int, int], reverse: bool, layout: str, device: torch.device
) -> Errors:
    """Compare states and gradients of one case with the loop, and with a second run, whose bits must be the same."""
    batch, length, dim = shape
    torch_dtype, tolerance = getattr(torch, dtype), TOLERANCES[dtype]
    generator = torch.Generator().manual_seed(length)
    gate, values, forget, grad = (
        torch.randn(4, *shape, generator=generator, dtype=torch.float64).to(device, torch_dtype).unbind()
    )
    gate = gate.sigmoid() if scan == "linear_scan" else 2 * gate
    sequences = [gate, values, *[forget] * ("forget" in scan)]
    initial = torch.rand(batch, dim, generator=generator).to(device, state_dtype(torch_dtype)) if reverse else None
    reset = (torch.rand(batch, length, generator=generator) < 0.05).to(device) if reverse else None
    sources = [LAYOUTS[layout](x).requires_grad_() for x in sequences] + ([] if initial is None else [initial])
    sources[-1].requires_grad_()

    def run() -> list[Tensor]:
        start = None if initial is None else sources[-1]
        k, v, *rest = sources[: len(sequences)]
        options: dict[str, Any] = {"reset": reset, "reverse": reverse}
        if scan == "linear_scan":
            h = linear_scan(k, v, start, **options)
        else:
            activation: Any = "positive" if "positive" in scan else "identity"
            h = gated_scan(k, v, start, forget=rest[0] if rest else None, activation=activation, **options)
        return [h.detach(), *torch.autograd.grad(h, sources, grad)]

    exact = [x.detach().double().requires_grad_() for x in sources]
    h = loop(scan, exact[: len(sequences)], None if initial is None else exact[-1], reset, reverse)
    wanted = [h.detach(), *torch.autograd.grad(h, exact, grad.double())]
    first, second = run(), run()
    errors = [relative(x, y) for x, y in zip(first, wanted, strict=True)]
    states, gradients = errors[0], max(errors[1:])
    faults = []
    if not states <= tolerance:  # also where it is NaN
        faults.append(f"error of the states {states:.1e}")
    if not gradients <= 3 * tolerance:
        faults.append(f"error of the gradients {gradients:.1e}")
    if not all(map(torch.equal, first, second)):
        faults.append("a second run has other bits")
    return Errors(states, gradients, faults)


def loop(scan: str, sequences: list[Tensor], initial: Tensor | None, reset: Tensor | None, reverse: bool) -> Tensor:
    """The definition, step by step; autograd makes the gradients."""
    decay, update, *forget = sequences
    if scan != "linear_scan":
        z = decay.sigmoid()
        if forget:
            z = z / (z + forget[0].sigmoid())
        decay, update = 1 - z, z * candidate(update, "positive" if "positive" in scan else "identity")
    return linear_scan_loop(decay, update, initial, reset=reset, reverse=reverse)


def check_large(device: torch.device) -> dict[str, Any]:
    """More elements than 32 bits count: the last row must be what it is alone, and so must its gradient."""
    batch, length, dim = LARGE
    torch.manual_seed(0)
    gate, values = (torch.randn(LARGE, dtype=torch.bfloat16, device=device).requires_grad_() for _ in range(2))
    alone = [x[-1:].detach().clone().requires_grad_() for x in (gate, values)]
    h, h_alone = gated_scan(gate, values), gated_scan(*alone)
    grad = torch.randn(1, length, dim, dtype=torch.bfloat16, device=device)
    states = relative(h[-1:].detach(), h_alone.detach())
    made = torch.autograd.grad(h, (gate, values), grad.expand(batch, -1, -1))
    wanted = torch.autograd.grad(h_alone, alone, grad)
    gradients = max(relative(x[-1:], y) for x, y in zip(made, wanted, strict=True))
    tolerance = TOLERANCES["bfloat16"]
    faults = [] if states <= tolerance and gradients <= 3 * tolerance else ["the last row differs"]
    row = {"name": f"gated_scan, positive, {gate.numel():,} elements", "dtype": "bfloat16", "cases": 1}
    return row | {"states": states, "gradients": gradients, "tolerance": tolerance, "faults": faults}


def relative(actual: Tensor, exact: Tensor) -> float:
    """Largest error relative to the largest exact magnitude, or to 1 if that is less."""
    return float((actual.double() - exact.double()).abs().max() / exact.double().abs().max().clamp(min=1))
