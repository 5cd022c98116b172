"""``minrnn benchmark scan``: the scans alone, against copying the bytes that they move and the paper's scan."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minrnn_lightning.commands.benchmark.measure import (
    DType,
    Step,
    check_sizes,
    gradient,
    parse_device,
    parse_lengths,
    time_and_memory,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.ops import gated_scan, linear_scan
from minrnn_lightning.ops.reference import log_space_scan

COPY, OURS, LOG_SPACE = "copying as many bytes", "gated_scan, positive", "the paper's log-space scan"
BOTH = "forward + backward"
FORWARD, BACKWARD = 2 + 1, 4 + 2  # sequences read and written: k, v, h, and ∂L/∂h, k, v, h, ∂L/∂k, ∂L/∂v

Scan = Callable[[Tensor, Tensor], Tensor]
SCANS: dict[str, Scan] = {
    "linear_scan": lambda gate, candidate: linear_scan(gate, candidate),
    OURS: partial(gated_scan, activation="positive"),
    "gated_scan, identity": partial(gated_scan, activation="identity"),
}


def scan(
    lengths: str = "512",
    batch_size: int = 64,
    dim: int = 256,
    dtype: DType = "float32",
    repeats: int = 9,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Benchmark the scans alone, forward and backward, against copying the bytes that they must at least move.

    Forward reads two sequences and writes one, backward reads four and writes two. Copying reads and writes as many
    bytes, between tensors that exist already. Forward and backward together are also compared with the paper's
    log-space scan.

    Args:
        lengths: Lengths of the sequences, separated by commas.
        batch_size: Number of sequences.
        dim: Features of the state.
        dtype: Type of the sequences.
        repeats: Number of times that each is timed, in turns.
        device: cpu, cuda or cuda:N.
        output: Folder to write scan.json, scan.csv and scan.png to.
        compare: The scan.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1 or the device is unknown.
    """
    torch_device, sequence_lengths = parse_device(device), parse_lengths(lengths)
    check_sizes(batch_size=batch_size, dim=dim, repeats=repeats)
    about = {"dtype": dtype, "batch_size": batch_size, "dim": dim, "repeats": repeats}
    report = Report("scan", ["ms", "peak_mb"], about, torch_device, output, compare)
    for length in sequence_lengths:
        torch.manual_seed(0)
        sequences = torch.randn(2, batch_size, length, dim, device=torch_device).to(getattr(torch, dtype)).unbind()
        parts = {"forward": forward(*sequences), "backward": backward(*sequences), BOTH: both(*sequences)}
        for part, steps in parts.items():
            named = {f"{part}: {name}": step for name, step in steps.items()}
            rows = time_and_memory(named, repeats, torch_device, length, batch_size)
            report.add(f"Length {length:,}, {part}", rows, [f"{part}: {COPY}", f"{BOTH}: {OURS}"])
    report.save()


def copying(sequences: int, like: Tensor) -> Step:
    """A copy whose bytes read and written together are those of so many sequences."""
    source, target = torch.ones(2, sequences * like.numel() // 2, dtype=like.dtype, device=like.device).unbind()
    return lambda: target.copy_(source)


def forward(gate: Tensor, candidate: Tensor) -> dict[str, Step]:
    """Every scan without gradients."""
    decay = gate.sigmoid()
    steps: dict[str, Step] = {COPY: copying(FORWARD, gate)}
    for name, run in SCANS.items():
        steps[name] = partial(run, decay if name == "linear_scan" else gate, candidate)
    return steps


def backward(gate: Tensor, candidate: Tensor) -> dict[str, Step]:
    """The gradients of both inputs of every scan, whose forward pass has run."""
    ones = torch.ones_like(gate)
    steps: dict[str, Step] = {COPY: copying(BACKWARD, gate)}
    for name, run in SCANS.items():
        sources = _leaves(gate.sigmoid() if name == "linear_scan" else gate, candidate)
        steps[name] = partial(torch.autograd.grad, run(*sources), sources, ones, retain_graph=True)
    return steps


def both(gate: Tensor, candidate: Tensor) -> dict[str, Step]:
    """Forward and backward of every scan and of the paper's."""
    ones = torch.ones_like(gate)
    steps: dict[str, Step] = {}
    for name, run in {**SCANS, LOG_SPACE: log_space_scan}.items():
        sources = _leaves(gate.sigmoid() if name == "linear_scan" else gate, candidate)
        steps[name] = gradient(partial(run, *sources), sources, ones)
    return steps


def _leaves(*sequences: Tensor) -> list[Tensor]:
    return [sequence.clone().requires_grad_() for sequence in sequences]
