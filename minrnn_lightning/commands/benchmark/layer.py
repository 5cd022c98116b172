"""``minrnn benchmark layer``: time and memory of one layer against the length, as in the paper's figure 1."""

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
    from mingru import MinGRU as Peer  # the only one with gates in (0, 1); it starts from a state of ½, ours from 0

    layer: nn.Module = Peer(dim, dim)
    return layer


LAYERS: dict[
    str, tuple[str, Callable[[int], nn.Module]]
] = {  # by their name in --layers: name in tables, and what makes one of a width
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
    """Benchmark one layer against baselines: time and peak memory of forward and backward.

    The layers take turns within each repeat, so that a noisy machine disturbs them alike; the table gives medians,
    the fastest and the slowest. The memory is that of tensors, beyond input and parameters; on the CPU it leaves out
    what does not come from PyTorch's allocator, such as buffers of oneDNN.

    Args:
        lengths: Lengths of the sequences, separated by commas.
        batch_size: Number of sequences.
        dim: Features of input and state.
        layers: Layers, separated by commas: products, mingru, minlstm, gru, lstm, loop (of nn.GRUCell), attention,
            logspace (the paper's scan), mingru-pytorch, mingru-scans; all of them if not given.
        compile: Also measure the minimal ones compiled by torch.compile.
        dtype: Type of input and parameters.
        repeats: Number of times that each layer is timed.
        device: cpu, cuda or cuda:N.
        output: Folder to write layer.json, layer.csv and layer.png to.
        compare: The layer.json of an earlier run; adds the ratio to it.

    Raises:
        InputError: A size is below 1, or a layer or the device is unknown.
    """
    chosen, torch_device = parse_choice("layers", layers, LAYERS), parse_device(device)
    torch_dtype, sequence_lengths = getattr(torch, dtype), parse_lengths(lengths)
    check_sizes(batch_size=batch_size, dim=dim, repeats=repeats)
    about = {"dtype": dtype, "batch_size": batch_size, "dim": dim, "repeats": repeats}
    report = Report("layer", ["ms", "peak_mb"], about, torch_device, output, compare)
    for length in sequence_lengths:
        torch.manual_seed(0)
        x = torch.randn(batch_size, length, dim, dtype=torch_dtype, device=torch_device, requires_grad=True)
        ones = torch.ones_like(x)
        modules = {name: module.to(torch_device, torch_dtype) for name, module in build(chosen, dim, compile).items()}
        steps = {name: forward_backward(module, x, ones) for name, module in modules.items()}
        rows = time_and_memory(steps, repeats, torch_device, length, batch_size)
        report.add(f"Length {length:,}, forward + backward", rows, [BASE, "MinGRU"])
    report.save()


def build(chosen: list[str], dim: int, compile: bool = False) -> dict[str, nn.Module]:  # noqa: A002
    """Layers to compare, from (batch, length, dim) to the same shape; those of other packages where installed."""
    built: dict[str, nn.Module] = {}
    torch.compiler.reset()  # forget what was compiled for another length
    for option in chosen:
        name, make = LAYERS[option]
        try:
            built[name] = make(dim)
        except ImportError:
            print(f"{name} is not installed and left out: pip install {name}", file=sys.stderr)
            continue
        if compile and option in COMPILED:
            compiled = make(dim)
            compiled.compile(dynamic=False)
            built[f"{name}, compiled"] = compiled
    return built


def forward_backward(module: nn.Module, x: Tensor, ones: Tensor) -> Step:
    """Forward and backward of a layer, to the input and the parameters, from a gradient of ones."""

    def outputs() -> Tensor | list[Tensor]:
        made: Tensor | list[Tensor] | tuple[Tensor, Tensor] = module(x)
        return made[0] if isinstance(made, tuple) else made  # without a recurrent layer's h_n

    return gradient(outputs, [x, *module.parameters()], ones)
