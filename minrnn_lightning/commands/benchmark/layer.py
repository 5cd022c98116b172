"""``minrnn benchmark layer``: time and memory of one layer against the length, as in figure 1 of the paper."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minrnn_lightning.commands.benchmark.baselines import CausalAttention, GRUCellLoop, LogSpaceMinGRU, TwoLinear
from minrnn_lightning.commands.benchmark.measure import (
    DType,
    Step,
    check_sizes,
    gradient,
    parse_choice,
    parse_device,
    parse_lengths,
    time_and_memory,
)
from minrnn_lightning.commands.benchmark.report import Report
from minrnn_lightning.nn import MinGRU, MinLSTM

BASE = "its matrix products alone (two nn.Linear)"


def _mingru_pytorch(dim: int) -> nn.Module:
    from minGRU_pytorch import minGRU

    layer: nn.Module = minGRU(dim)
    return layer


def _mingru_scans(dim: int) -> nn.Module:
    from mingru import MinGRU as Peer  # its only one with gates between 0 and 1; starts from a state of ½, ours from 0

    layer: nn.Module = Peer(dim, dim)
    return layer


LAYERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {  # word of --layers: name, maker
    "products": (BASE, TwoLinear),
    "mingru": ("MinGRU", lambda dim: MinGRU(dim, dim, batch_first=True)),
    "minlstm": ("MinLSTM", lambda dim: MinLSTM(dim, dim, batch_first=True)),
    "gru": ("nn.GRU", lambda dim: nn.GRU(dim, dim, batch_first=True)),
    "lstm": ("nn.LSTM", lambda dim: nn.LSTM(dim, dim, batch_first=True)),
    "loop": ("loop of nn.GRUCell (the paper's baseline)", GRUCellLoop),
    "attention": ("causal attention", CausalAttention),
    "logspace": ("minGRU, the paper's log-space scan", LogSpaceMinGRU),
    "mingru-pytorch": ("minGRU-pytorch", _mingru_pytorch),
    "mingru-scans": ("mingru-scans", _mingru_scans),
}
COMPILED = ("mingru", "minlstm", "logspace", "mingru-pytorch", "mingru-scans")


def layer(
    lengths: str = "512,2048",
    batch_size: int = 16,
    dim: int = 256,
    layers: str = "",
    compile: bool = False,  # noqa: A002
    dtype: DType = "float32",
    repeats: int = 9,
    device: str = "cpu",
    output: str | None = None,
    compare: str | None = None,
) -> None:
    """Time forward and backward of one layer, and find the peak of its memory, beside its baselines.

    The layers take turns within each repeat, so that a noisy machine disturbs them alike; the table gives medians,
    the fastest and the slowest. The memory is that of tensors, beyond input and parameters; on the CPU it leaves out
    what does not come from PyTorch's allocator, such as buffers of oneDNN.

    Args:
        lengths: Steps of the sequences, separated by commas.
        batch_size: Sequences at once.
        dim: Features of input and state.
        layers: Which, separated by commas: products, mingru, minlstm, gru, lstm, loop (of nn.GRUCell), attention,
            logspace (the paper's scan), mingru-pytorch, mingru-scans; all of them if not given.
        compile: Add the minimal ones compiled by torch.compile.
        dtype: The type of input and parameters.
        repeats: How often each layer is timed.
        device: cpu, cuda or cuda:N.
        output: Folder to write layer.json, layer.csv and layer.png to.
        compare: The layer.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below one, or a layer or device unknown.
    """
    chosen, place, kind = parse_choice("layers", layers, LAYERS), parse_device(device), getattr(torch, dtype)
    steps_of = parse_lengths(lengths)
    check_sizes(batch_size=batch_size, dim=dim, repeats=repeats)
    about = {"dtype": dtype, "batch_size": batch_size, "dim": dim, "repeats": repeats}
    report = Report("layer", ["ms", "peak_mb"], about, place, output, compare)
    for length in steps_of:
        torch.manual_seed(0)
        x = torch.randn(batch_size, length, dim, dtype=kind, device=place, requires_grad=True)
        ones = torch.ones_like(x)
        modules = {name: module.to(place, kind) for name, module in build(chosen, dim, compile).items()}
        steps = {name: step_of(module, x, ones) for name, module in modules.items()}
        rows = time_and_memory(steps, repeats, place, length, batch_size)
        report.add(f"Length {length:,}, forward + backward", rows, [BASE, "MinGRU"])
    report.save()


def build(chosen: list[str], dim: int, compile: bool = False) -> dict[str, nn.Module]:  # noqa: A002
    """The layers to compare, each mapping (batch, length, dim) to the same shape; peers where they are installed."""
    built: dict[str, nn.Module] = {}
    torch.compiler.reset()  # forget what was compiled for another length
    for word in chosen:
        name, make = LAYERS[word]
        try:
            built[name] = make(dim)
        except ImportError:
            print(f"{name} is not installed and left out: pip install {name}", file=sys.stderr)
            continue
        if compile and word in COMPILED:
            compiled = make(dim)
            compiled.compile(dynamic=False)
            built[f"{name}, compiled"] = compiled
    return built


def step_of(module: nn.Module, x: Tensor, ones: Tensor) -> Step:
    """Forward and backward of a layer, to the input and the parameters, from a gradient of ones."""

    def outputs() -> Tensor | list[Tensor]:
        made: Tensor | list[Tensor] | tuple[Tensor, Tensor] = module(x)
        return made[0] if isinstance(made, tuple) else made  # without a recurrent layer's h_n

    return gradient(outputs, [x, *module.parameters()], ones)
