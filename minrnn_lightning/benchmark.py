"""Speed of a layer and of a recipe's training step against named baselines, all measured in one run."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from minrnn_lightning.lightning_cli import MinRNNCLI
from minrnn_lightning.nn import MinGRU, MinLSTM
from minrnn_lightning.ops.reference import log_space_scan

Step = Callable[[], object]
BASE = "its matrix products alone (two nn.Linear)"
PRODUCTS, WHOLE, LOG_SPACE = "its matrix products alone", "training step", "the same with the paper's log-space scan"
STEPS = 7  # training steps of each kind that are timed


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
    machine = f"{_machine()}, batch {batch_size}, dim {dim}, float32, medians of {repeats}"
    results: dict[str, Any] = {"machine": machine, "milliseconds": {}}
    for length in lengths:
        torch.manual_seed(0)
        x = torch.randn(batch_size, length, dim, requires_grad=True)
        seconds = interleaved({name: _step(module, x) for name, module in layers(dim).items()}, repeats)
        results["milliseconds"][str(length)] = {name: 1e3 * statistics.median(s) for name, s in seconds.items()}
        _show(f"Length {length} ({machine})", "layer, forward + backward", seconds, [BASE, "MinGRU"])
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


def train(words: list[str]) -> None:
    """Time whole training steps of a recipe on the CPU beside its matrix products alone and the paper's scan.

    A step is forward, loss, backward, clipping and AdamW on one batch of the recipe's data. The matrix products have
    the shapes and the precision of the step's, forward and backward.

    Args:
        words: the options of ``minrnn fit``; a recipe among them.
    """
    cli = _Built(["fit", *words, "--trainer.accelerator=cpu"])
    data, trainer, model = cli.datamodule, cli.trainer, cli.model
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=trainer.precision == "bf16-mixed")

    def step() -> None:
        optimizer.zero_grad()
        with autocast:
            logits, _ = model(batch[0])
            loss = model.loss(logits, batch[1])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), trainer.gradient_clip_val or torch.inf)
        optimizer.step()

    def log_space_step() -> None:
        with mock.patch("minrnn_lightning.nn.rnn.gated_scan", _paper_scan):
            step()

    with _Linears() as linears:
        step()
    seconds = interleaved({PRODUCTS: linears.products(), WHOLE: step, LOG_SPACE: log_space_step}, STEPS)
    title = f"{_machine()}, precision {trainer.precision}, medians of {STEPS}"
    _show(title, "a batch", seconds, [PRODUCTS, WHOLE])


class _Built(MinRNNCLI):
    """Model, data and trainer of a recipe, built and not run."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class _Linears(TorchFunctionMode):
    """Notes the operands of every ``F.linear`` inside a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            x, weight = (operand.detach().to(result.dtype).clone().requires_grad_() for operand in args[:2])
            self.operands.append((x, weight))
        return result

    def products(self) -> Step:
        """The matrix products of what was noted: one forward and two backward for each, from a gradient of ones."""
        gradients = [torch.ones_like(F.linear(x, weight)) for x, weight in self.operands]

        def step() -> None:
            for (x, weight), gradient in zip(self.operands, gradients, strict=True):
                torch.autograd.grad(F.linear(x, weight), (x, weight), gradient)

        return step


def _paper_scan(gate: Tensor, candidate: Tensor, *_: object, **__: object) -> Tensor:
    return log_space_scan(gate.float(), candidate.float()).to(gate.dtype)


def _machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _show(title: str, kind: str, seconds: dict[str, list[float]], bases: list[str]) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    table = Table(title=title)
    for column in (kind, "ms", "spread", *(f"times {base}" for base in bases)):
        table.add_column(column, justify="left" if column == kind else "right")
    for name, median in medians.items():
        ratios = (f"{median / medians[base]:.2f}" for base in bases)
        spread = f"{1e3 * min(seconds[name]):.1f} to {1e3 * max(seconds[name]):.1f}"
        table.add_row(name, f"{1e3 * median:.1f}", spread, *ratios)
    Console(width=140).print(table)
