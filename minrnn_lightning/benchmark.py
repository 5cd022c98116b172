"""Speed of one minGRU or minLSTM layer against named baselines, all measured in one run."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from minrnn_lightning.nn import MinGRU, MinLSTM
from minrnn_lightning.ops.reference import log_space_scan

Step = Callable[[], object]
BASE = "its matrix products alone (two nn.Linear)"


class TwoLinear(nn.Module):
    """The two matrix products of a minGRU layer, and nothing between them."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.gate, self.candidate = (nn.Linear(input_size, hidden_size) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, length, input_size) to two of (batch, length, hidden_size)."""
        return self.gate(x), self.candidate(x)


class LogSpaceMinGRU(TwoLinear):
    """minGRU computed as the paper does: the same two products, then the log-space scan."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(batch, length, input_size) to (batch, length, hidden_size)."""
        return log_space_scan(*super().forward(x))


def layers(dim: int) -> dict[str, nn.Module]:
    """The layers to compare, each mapping (batch, length, dim) to the same shape; peers where installed."""
    named: dict[str, nn.Module] = {
        BASE: TwoLinear(dim, dim),
        "MinGRU": MinGRU(dim, dim, batch_first=True),
        "MinLSTM": MinLSTM(dim, dim, batch_first=True),
        "nn.GRU": nn.GRU(dim, dim, batch_first=True),
        "nn.LSTM": nn.LSTM(dim, dim, batch_first=True),
        "minGRU, the paper's log-space scan": LogSpaceMinGRU(dim, dim),
    }
    try:
        from minGRU_pytorch import minGRU
    except ImportError:
        print("minGRU-pytorch is not installed and not compared: pip install minGRU-pytorch", file=sys.stderr)
    else:
        named["minGRU-pytorch"] = minGRU(dim)
    return named


def layer(
    lengths: list[int] = [512, 2048],  # noqa: B006  (jsonargparse shows it as the default)
    batch_size: int = 16,
    dim: int = 256,
    repeats: int = 9,
    output: str | None = None,
) -> None:
    """Time forward and backward of one layer on the CPU, in float32, beside its baselines.

    The layers take turns within each repeat, so that a noisy machine disturbs them alike; the table gives medians.

    Args:
        lengths: Steps of the sequences.
        batch_size: Sequences at once.
        dim: Features of input and state.
        repeats: How often each layer is timed, after one untimed round.
        output: JSON file to write the medians to.

    Raises:
        ValueError: A size is below one.
    """
    if min(*lengths, batch_size, dim, repeats) < 1:
        raise ValueError(
            f"lengths, batch_size, dim and repeats must be at least 1, got {lengths}, {batch_size}, {dim} and {repeats}"
        )
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"batch {batch_size}, dim {dim}, float32, medians of {repeats}"
    )
    results: dict[str, Any] = {"machine": machine, "milliseconds": {}}
    for length in lengths:
        torch.manual_seed(0)
        x = torch.randn(batch_size, length, dim, requires_grad=True)
        seconds = interleaved({name: _step(module, x) for name, module in layers(dim).items()}, repeats)
        results["milliseconds"][str(length)] = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
        _show(f"Length {length} ({machine})", seconds)
    if output:
        Path(output).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of every step; the steps take turns, after one untimed round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _step(module: nn.Module, x: Tensor) -> Step:
    """Forward and backward, to the input and the parameters, from a gradient of ones."""
    sources = [x, *module.parameters()]

    def step() -> object:
        output = module(x)
        if not isinstance(output, tuple):
            parts = [output]
        else:
            parts = list(output if isinstance(module, TwoLinear) else output[:1])  # without a recurrent layer's h_n
        return torch.autograd.grad(parts, sources, [torch.ones_like(part) for part in parts])

    return step


def _show(title: str, seconds: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table(title=title)
    for column in ("layer, forward + backward", "ms", "spread", f"times {BASE}", "times MinGRU"):
        table.add_column(column, justify="left" if column.startswith("layer") else "right")
    for name, median in medians.items():
        table.add_row(
            name,
            f"{1e3 * median:.1f}",
            f"{1e3 * min(seconds[name]):.1f} to {1e3 * max(seconds[name]):.1f}",
            f"{median / medians[BASE]:.2f}",
            f"{median / medians['MinGRU']:.2f}",
        )
    Console(width=140).print(table)
